"""The only code that knows transformers: layouts, loading, chat, capture, hooks, generation, scoring."""

from steer2edit.models.batching import TokenBudget, length_batches, run_batches
from steer2edit.models.capture import BatchMeans, SpanMeans, mean_output, span_means
from steer2edit.models.chat import SPAN_RULE, EncodedResponse, Message, Prompt, encode_prompts, encode_responses
from steer2edit.models.chat_format import ChatFormat, recorded_chat
from steer2edit.models.generation import (
    GENERATION_TOKENS,
    Sampling,
    generate,
    generate_batch,
    next_token_log_probabilities,
    span_log_probabilities,
    token_log_probabilities,
)
from steer2edit.models.hooks import SiteUpdate, updated_outputs
from steer2edit.models.language_model import LanguageModel, sample_step, sampled_fingerprint
from steer2edit.models.layout import Layout
from steer2edit.models.loading import load_model, load_skeleton, read_settings, wrap_model
from steer2edit.models.model_path import checkpoint_directory
from steer2edit.models.reply import Reply
from steer2edit.models.site_module import Projection, SiteModule
from steer2edit.models.sites import ModelSites, find_sites
from steer2edit.models.stored import StoredMatrix, stored_matrices, stored_parameters
