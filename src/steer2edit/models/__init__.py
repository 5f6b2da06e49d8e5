"""The only code that knows transformers: layouts, loading, chat, capture, hooks, generation, scoring."""

from steer2edit.models.batching import length_batches
from steer2edit.models.capture import mean_output, span_means
from steer2edit.models.chat import (
    SPAN_RULE,
    EncodedResponse,
    Message,
    Prompt,
    chat_template_hash,
    encode_prompts,
    encode_responses,
)
from steer2edit.models.generation import Reply, Sampling, generate, generate_batch
from steer2edit.models.hooks import OutputUpdate, updated_outputs
from steer2edit.models.language_model import LanguageModel, fingerprint
from steer2edit.models.layout import Layout, find_sites, known_layouts
from steer2edit.models.loading import load_model
from steer2edit.models.scoring import span_log_probabilities, token_log_probabilities
from steer2edit.models.site_module import SiteModule

__all__ = [
    "SPAN_RULE",
    "EncodedResponse",
    "LanguageModel",
    "Layout",
    "Message",
    "OutputUpdate",
    "Prompt",
    "Reply",
    "Sampling",
    "SiteModule",
    "chat_template_hash",
    "encode_prompts",
    "encode_responses",
    "find_sites",
    "fingerprint",
    "generate",
    "generate_batch",
    "known_layouts",
    "length_batches",
    "load_model",
    "mean_output",
    "span_log_probabilities",
    "span_means",
    "token_log_probabilities",
    "updated_outputs",
]
