"""The only code that knows transformers: layouts, loading, chat, capture, hooks, generation, scoring."""

from steer2edit.models.batching import (
    TokenBudget as TokenBudget,
    length_batches as length_batches,
    run_batches as run_batches,
)
from steer2edit.models.capture import (
    BatchMeans as BatchMeans,
    SpanMeans as SpanMeans,
    mean_output as mean_output,
    span_means as span_means,
)
from steer2edit.models.chat import (
    SPAN_RULE as SPAN_RULE,
    EncodedResponse as EncodedResponse,
    Message as Message,
    Prompt as Prompt,
    encode_prompts as encode_prompts,
    encode_responses as encode_responses,
)
from steer2edit.models.chat_format import ChatFormat as ChatFormat, recorded_chat as recorded_chat
from steer2edit.models.generation import (
    GENERATION_TOKENS as GENERATION_TOKENS,
    Sampling as Sampling,
    generate as generate,
    generate_batch as generate_batch,
    span_log_probabilities as span_log_probabilities,
    token_log_probabilities as token_log_probabilities,
)
from steer2edit.models.hooks import SiteUpdate as SiteUpdate, updated_outputs as updated_outputs
from steer2edit.models.language_model import (
    LanguageModel as LanguageModel,
    sample_step as sample_step,
    sampled_fingerprint as sampled_fingerprint,
)
from steer2edit.models.layout import Layout as Layout
from steer2edit.models.loading import (
    load_model as load_model,
    load_skeleton as load_skeleton,
    read_settings as read_settings,
    wrap_model as wrap_model,
)
from steer2edit.models.model_path import checkpoint_directory as checkpoint_directory
from steer2edit.models.reply import Reply as Reply
from steer2edit.models.site_module import Projection as Projection, SiteModule as SiteModule
from steer2edit.models.sites import ModelSites as ModelSites, find_sites as find_sites
from steer2edit.models.stored import (
    StoredMatrix as StoredMatrix,
    stored_matrices as stored_matrices,
    stored_parameters as stored_parameters,
)
