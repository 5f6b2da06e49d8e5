"""Greedy coordinate gradient, by `nanogcg`: a suffix after which the model is likely to begin with a given opener.

`nanogcg` 0.3.0 was written for transformers 4. Two thin wrappers let it run on transformers 5, and on the tokens that
the rest of this package sees: one gives it the cache of the prompt in a form that it can hand back, the other renders
the prompt as `models.chat` does (its own way deletes the text of the BOS token everywhere, which in ChatML begins every
message).

Source: Zou et al., "Universal and Transferable Adversarial Attacks on Aligned Language Models", arXiv 2307.15043.
"""

import copy
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from steer2edit.errors import InvalidValueError, ModelError
from steer2edit.models import (
    LanguageModel,
    Message,
    Prompt,
    encode_responses,
    span_log_probabilities,
    token_log_probabilities,
)
from steer2edit.models.rendering import render_turns, tokenizer_of
from steer2edit.models.tokenizer import added_tokens, renders_tokens
from steer2edit.progress import step

INSTALL_HINT = "pip install --no-deps nanogcg==0.3.0"
"""Without its dependencies: it asks for transformers < 4.48, but runs on 5."""
_PLACE = "{optim_str}"


@dataclass(frozen=True)
class GcgBudget:
    """How hard a suffix is searched for.

    Args:
        steps: gradient steps, at most: it ends early once the target would be the greedy reply.
        width: candidates tried per step.
        top_k: replacements per position that the gradient proposes.
        length: of the suffix, in tokens.
    """

    steps: int = 250
    width: int = 512
    top_k: int = 256
    length: int = 20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InvalidValueError(f"{name} must be >= 1, got {value}.")

    @property
    def start(self) -> str:
        """The suffix that the search begins with."""
        return " x" * self.length


@dataclass(frozen=True)
class Suffix:
    """What a search found.

    Args:
        text: appended to the request.
        losses: the best candidate's by step: nats per token of the target, as the search saw it.
    """

    text: str
    losses: tuple[float, ...]


def find_suffix(model: LanguageModel, prompt: Prompt, target: str, budget: GcgBudget, seed: int = 0) -> Suffix:
    """Search a suffix of a request that makes the model's reply begin with `target`.

    Args:
        model: attacked as it is: weights that are merged when this is called count.
        prompt: the request.
        target: an opener, such as "Sure, here is".
        budget: of the search.
        seed: of the candidates that are drawn.

    Raises:
        ModelError: nanogcg is not installed, or cannot search on this model or with its tokenizer.
    """
    library = _library()
    if renders_tokens(tokenizer_of(model)):
        raise ModelError(
            f"nanogcg cannot search suffixes for {model.name!r}: its tokenizer, mistral-common's, has no text."
        )
    attack_messages = _messages(with_suffix(prompt, _PLACE))
    tokenizer = PlainTokenizer(model, target)
    with _quiet(library, budget.steps), torch.random.fork_rng():
        torch.manual_seed(seed)
        config = library.GCGConfig(
            num_steps=budget.steps,
            optim_str_init=budget.start,
            search_width=budget.width,
            topk=budget.top_k,
            early_stop=True,
            allow_non_ascii=True,  # which tokens are not allowed is set below, once per tokenizer
            seed=None,  # its own seeding would change torch's settings for the rest of the process
            verbosity="ERROR",
            add_space_before_target=tokenizer.before(attack_messages).endswith(" "),
            use_prefix_cache=repeatable_cache(model),
        )
        attack = library.GCG(CachedNetwork(model.network), tokenizer, config)
        attack.not_allowed_ids = forbidden_tokens(model)
        try:
            found = attack.run(attack_messages, target)
        except RuntimeError as error:
            raise ModelError(f"nanogcg cannot search suffixes for {model.name!r}: {error}") from error
    return Suffix(found.best_string, tuple(found.losses))


def target_losses(model: LanguageModel, prompts: Sequence[Prompt], target: str) -> list[float]:
    """Negative log-likelihood of the target behind each prompt, in nats per token: measured on the text itself.

    The model runs as it is: hooks and edits in force when this is called apply.
    """
    responses = encode_responses(model, [(prompt, target) for prompt in prompts])
    losses = []
    for response in responses:
        (distribution,) = span_log_probabilities(model, [response])
        losses.append(-float(token_log_probabilities(distribution, response).mean()))
    return losses


def with_suffix(prompt: Prompt, suffix: str) -> Prompt:
    """The prompt with a text behind its last message."""
    if isinstance(prompt, str):
        return prompt + suffix
    *before, last = prompt
    return [*before, {"role": last["role"], "content": last["content"] + suffix}]


def _messages(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _library() -> ModuleType:
    try:
        return import_module("nanogcg.gcg")
    except ImportError as error:
        raise ModelError(
            f"greedy coordinate gradient needs the package nanogcg, which cannot be imported ({error}). "
            f"Run: {INSTALL_HINT}"
        ) from error


@contextmanager
def _quiet(library: Any, steps: int) -> Iterator[None]:
    """The library's own bar becomes one of ours, and its warnings (that a CPU is slow) are not shown.

    It collects garbage twice a step, which takes half of the time where many objects live: those of before are frozen.
    """
    bar, level = library.tqdm, library.logger.level
    with step("Searching a suffix", steps) as advance:
        library.tqdm = _counted(advance)
        library.logger.setLevel(logging.ERROR)
        gc.freeze()
        try:
            yield
        finally:
            gc.unfreeze()
            library.tqdm = bar
            library.logger.setLevel(level)


def _counted(advance: Callable[[int], None]) -> Callable[[Sequence[int]], Iterator[int]]:
    def bar(items: Sequence[int]) -> Iterator[int]:
        for item in items:
            yield item
            advance(1)

    return bar


def forbidden_tokens(model: LanguageModel) -> Tensor:
    """Tokens that no suffix may have: special ones, what is not printable ASCII, and rows that are no token at all."""
    tokenizer = tokenizer_of(model)
    special = set(tokenizer.all_special_ids) | set(added_tokens(tokenizer))
    rows = int(model.network.get_input_embeddings().num_embeddings)
    known = min(rows, len(tokenizer))
    texts = tokenizer.batch_decode([[i] for i in range(known)])
    bad = [i for i, text in enumerate(texts) if i in special or not (text.isascii() and text.isprintable())]
    return torch.tensor([*bad, *range(known, rows)], dtype=torch.long, device=model.device)


class PlainTokenizer:
    """The model's tokenizer, with the prompt rendered and tokenised as in `models.chat`: no token is added."""

    bos_token = None  # the library would delete its text everywhere in the prompt

    def __init__(self, model: LanguageModel, target: str) -> None:
        self._model = model
        self._target = target
        self._tokenizer = tokenizer_of(model)

    def before(self, messages: Prompt) -> str:
        """All that stands in front of the target."""
        (turn,) = render_turns(self._model, [(messages, self._target)])
        return turn.text[: turn.start]

    def apply_chat_template(self, messages: Prompt, **_: Any) -> str:
        """The text up to the target."""
        return self.before(messages).removesuffix(" ")  # a space there is a part of the target's first token

    def __call__(self, text: Any, **settings: Any) -> Any:
        """Without tokens of the tokenizer's own."""
        return self._tokenizer(text, **{**settings, "add_special_tokens": False})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


class _PromptCache:
    """Keys and values of the prompt, as the library handles them: a list of layers of tensors to expand to a batch.

    All that comes back of it is how many rows are wanted, so one marker stands for all layers.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __len__(self) -> int:
        return 1

    def __getitem__(self, layer: int) -> tuple[Tensor]:
        if layer:
            raise IndexError(layer)
        return (torch.empty(1, 1, 1, 1),)

    def copy(self, rows: int) -> Any:
        """For one pass, which appends to it."""
        cache = copy.deepcopy(self._cache)
        if rows > 1:
            cache.batch_repeat_interleave(rows)
        return cache


@torch.inference_mode()
def repeatable_cache(model: LanguageModel) -> bool:
    """Whether the cache of a prompt can be repeated for many rows: the states of linear attention cannot."""
    output = model.network(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True)
    layers = getattr(output.past_key_values, "layers", ())
    return bool(layers) and not any("LinearAttention" in kind.__name__ for own in layers for kind in type(own).__mro__)


class _Embedding:
    """The input embedding, for a caller that takes its `weight` for what it gives: Gemma's multiplies by √d besides."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    @property
    def weight(self) -> Tensor:
        """What the module gives for every token, [v, d]."""
        own = self._module.get_parameter("weight")
        scale = getattr(self._module, "embed_scale", None)
        return own if scale is None else own * torch.as_tensor(scale).to(own)

    def __call__(self, ids: Tensor) -> Any:
        return self._module(ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class CachedNetwork:
    """The network, for a caller that keeps a cache of transformers 4."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._prompt: _PromptCache | None = None

    def get_input_embeddings(self) -> _Embedding:
        """What makes vectors of tokens."""
        return _Embedding(self._network.get_input_embeddings())  # type: ignore[operator]

    def __call__(self, *, past_key_values: Any = None, **inputs: Any) -> Any:
        """A pass; behind the prompt, if that is given."""
        if past_key_values is None:
            output = self._network(**inputs)
            if inputs.get("use_cache"):
                output.past_key_values = self._prompt = _PromptCache(output.past_key_values)
            return output
        assert self._prompt is not None
        rows = 1 if past_key_values is self._prompt else len(past_key_values[0][0])
        return self._network(past_key_values=self._prompt.copy(rows), **inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)
