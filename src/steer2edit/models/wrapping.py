"""A model that is in memory already, such as one of a notebook, as a model of this package."""

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steer2edit.errors import ModelError
from steer2edit.models.chat_format import ChatFormat
from steer2edit.models.language_model import LanguageModel
from steer2edit.models.layout import Layout
from steer2edit.models.loading import require_readable


def wrap_model(
    network: Any, tokenizer: Any, *, name: str | None = None, layout: Layout | None = None,
    template_args: dict[str, Any] | None = None,
    system: str | None = None,
) -> LanguageModel:  # fmt: skip
    """The model with its tokenizer; neither is copied, and the weights are never changed for good.

    Args:
        network: a causal language model of transformers.
        tokenizer: the one that belongs to it.
        name: where it can be loaded from again, a Hub id or a directory; by default what its config says.
        layout: of an architecture that is not known.
        template_args: handed to the chat template by name.
        system: a system message for conversations that have none of their own.

    Raises:
        ModelError: one of the two is something else, or quantised weights cannot be read here.
        LayoutError: the model has residual writers that no layout rule covers.
    """
    what = f"{type(network).__module__}.{type(network).__qualname__}"
    if not isinstance(network, PreTrainedModel):
        raise ModelError(
            f"wrap needs a causal language model of transformers (AutoModelForCausalLM), got an object of {what}. Give "
            "the model itself, without an adapter or a pipeline around it."
        )
    if not network.can_generate() or getattr(network.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{what} is no causal language model: it does not go on from a prompt token by token. Load the checkpoint "
            "with AutoModelForCausalLM, and wrap that."
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(
            f"wrap needs the model's tokenizer (AutoTokenizer) besides, got {type(tokenizer).__qualname__}: "
            "wrap(model, tokenizer)."
        )
    chat = ChatFormat(template_args or {}, system=system)
    chat.require_used(tokenizer)
    model = LanguageModel(
        network, tokenizer, name=name or network.name_or_path or "unnamed", layout=layout, chat=chat,
        revision=getattr(network.config, "_commit_hash", None),
    )  # fmt: skip
    require_readable(model)
    return model
