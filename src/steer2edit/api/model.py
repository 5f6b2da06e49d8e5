"""A model that can be asked, steered and edited."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steer2edit.api import showing
from steer2edit.api.keywords import public
from steer2edit.errors import InvalidValueError
from steer2edit.models import LanguageModel, Layout, Prompt, Sampling, generate, load_model, wrap_model
from steer2edit.progress import show_progress
from steer2edit.settings import Loading


class Model(LanguageModel):
    """A causal language model with its tokenizer; made by `load` or `wrap`. Its weights are never changed for good."""

    @classmethod
    def of(cls, loaded: LanguageModel) -> "Model":
        """The same model: network, tokenizer and sites are shared, and nothing is looked for again."""
        model = object.__new__(cls)
        model.__dict__.update(vars(loaded))
        return model

    def reply(self, prompt: Prompt, *, max_new_tokens: int = 200, temperature: float = 0.0, seed: int = 0) -> str:
        """The reply to a prompt, a text or a conversation, under the edits and the steering that are on.

        Args:
            prompt: text, or messages with role and content.
            max_new_tokens: longest reply.
            temperature: 0 for the likeliest words.
            seed: of sampling.

        Raises:
            DataError: the prompt is empty, or does not fit into the context with its reply.
        """
        return self.replies([prompt], max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)[0]

    def replies(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 200, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """As `reply`, to many prompts in batches; an InvalidValueError for one text instead of a list of prompts."""
        if isinstance(prompts, str):
            raise InvalidValueError(f"replies takes a list of prompts, got the text {prompts[:40]!r}: ask with reply.")
        sampling = Sampling(max_new_tokens, temperature, seed=seed)
        with show_progress(piped=False):
            return [reply.shown for reply in generate(self, prompts, sampling)]

    def __repr__(self) -> str:
        kind, dtype = self.network.config.model_type, str(self.dtype).removeprefix("torch.")
        counts: dict[str, int] = {}
        for site, module in self.sites.items():
            counts[site.block] = counts.get(site.block, 0) + module.component_count
        return showing.lines(
            f"Model {self.name} ({kind}, {len(self.layers)} layers, {dtype} on {self.device})",
            f"{len(self.sites)} sites that can be edited: {showing.counted(counts)}",
        )

    def _repr_html_(self) -> str:
        return showing.page(repr(self))


@public
def load(name: str | Path, loading: Loading, *, like: Mapping[str, Any] | Sequence[Mapping[str, Any]] = ()) -> Model:
    """Load a model.

    Args:
        name: a Hub id, a local directory, a .gguf file, or `smollm2` for the embedded SmolLM2-135M-Instruct.
        like: metadata of vectors or of an edit that is gone on from: its template arguments and date are used again.

    Raises:
        ModelError: it is not there, or cannot be read.
        LayoutError: it has residual writers that no layout rule covers.
    """
    return Model.of(load_model(str(name), **vars(loading), like=like))


def wrap(
    model: Any,
    tokenizer: Any,
    *,
    name: str | None = None,
    layout: Path | Layout | None = None,
    template_args: Mapping[str, Any] | None = None,
    system: str | None = None,
) -> Model:
    """Take a causal language model of transformers that is loaded already, with its tokenizer.

    Args:
        model: what `AutoModelForCausalLM.from_pretrained` gave; it is not copied.
        tokenizer: the one that belongs to it.
        name: where it can be loaded from again; by default what its config says.
        layout: of an architecture that is not known.
        template_args: handed to the chat template by name.
        system: a system message for conversations that have none of their own.

    Raises:
        ModelError: it is no causal language model, quantised weights cannot be read here, or there is no tokenizer.
    """
    return Model.of(wrap_model(model, tokenizer, name=name, layout=layout, template_args=template_args, system=system))
