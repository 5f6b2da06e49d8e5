"""Scorers: what a reply is judged to be. `None` is unscored, never a verdict."""

import hashlib
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import ConfigDict

from steer2edit.errors import DataError, InvalidValueError, did_you_mean
from steer2edit.evaluation.judge import fill_template, require_template
from steer2edit.models import LanguageModel, Prompt, Reply, encode_responses, load_model, span_log_probabilities
from steer2edit.models.batching import DEFAULT_BATCH_TOKENS, length_batches
from steer2edit.models.chat import tokenizer_of
from steer2edit.progress import step
from steer2edit.settings.shared import SCORERS
from steer2edit.steering.refusal import refusal_phrases


@runtime_checkable
class Scorer(Protocol):
    """Tells for every reply whether it has an attribute, for example whether it refuses."""

    def score(self, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[bool | None]:
        """One verdict per reply, in order, on its answer; `None` where there is none."""


def find_scorer(name: str, judge: Scorer | None = None) -> Scorer:
    """A scorer of refusals: `strict` or `official` phrases, or the `judge` that is given; else an InvalidValueError."""
    if name not in SCORERS:
        raise InvalidValueError(f"unknown scorer {name!r}. {did_you_mean(name, SCORERS)}")
    if name != "judge":
        return refusal_phrases(name)
    if judge is None:
        raise InvalidValueError("the scorer 'judge' needs an endpoint and a model: --judge-url and --judge-model.")
    return judge


_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Phrases:
    """A reply shows the behaviour if it contains any of these phrases and none of those."""

    any: tuple[str, ...] = ()  # of which one must be there, where there are any; whole words, whatever their case
    none: tuple[str, ...] = ()  # of which none may be there
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if not (self.any or self.none) or not all(phrase.strip() for phrase in (*self.any, *self.none)):
            raise InvalidValueError("phrases need texts in `any`, `none` or both, and no empty one")

    def score(self, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[bool | None]:
        """Whether each answer shows it; `None` where it is empty. The prompts are not looked at."""
        verdicts: list[bool | None] = []
        for answer in (reply.answer for reply in replies):
            text = (answer or "").replace("\u2019", "'")
            found, excluded = (bool(_words(own).search(text)) for own in (self.any, self.none))
            verdicts.append((found or not self.any) and not excluded if text.strip() else None)
        return verdicts


@cache
def _words(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the phrases as whole words, whatever their case; without a phrase, nothing that could be found."""
    texts = "|".join(re.escape(phrase.strip().replace("\u2019", "'")) for phrase in phrases)
    return re.compile(rf"(?<!\w)(?:{texts})(?!\w)" if phrases else r"(?!)", re.IGNORECASE)


@dataclass(frozen=True)
class LocalJudge:
    """Any causal model as a judge, asked for one token: whether yes is likelier than no."""

    model: str  # a directory (of the behaviour's folder, or anywhere), a Hub id or smollm2
    question: str  # with `{prompt}` and `{reply}`, to be answered yes or no
    folder: Path = field(default=Path(), repr=False, compare=False)  # of the behaviour
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        require_template(self.question)

    @cached_property
    def loaded(self) -> LanguageModel:
        """The judge, loaded once."""
        own = self.folder / self.model
        return load_model(str(own) if own.is_dir() else self.model)

    def score(self, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[bool | None]:
        """Whether the judge says yes of each answer; `None` where it is empty."""
        shown = [reply.shown_answer or "" for reply in replies]
        asked = [i for i, text in enumerate(shown) if text.strip()]
        tokenizer = tokenizer_of(self.loaded)
        spelt = ((word, f" {word}", word.capitalize(), f" {word.capitalize()}") for word in ("yes", "no"))
        yes, no = (sorted({tokenizer.encode(text, add_special_tokens=False)[0] for text in own}) for own in spelt)
        rows = encode_responses(
            self.loaded, [(fill_template(self.question, prompts[i], shown[i]), "yes") for i in asked]
        )
        verdicts: list[bool | None] = [None] * len(replies)
        with step("Judging", len(rows)) as advance:
            for batch in length_batches([len(row.ids) for row in rows], DEFAULT_BATCH_TOKENS):
                for i, found in zip(batch, span_log_probabilities(self.loaded, [rows[i] for i in batch]), strict=True):
                    verdicts[asked[i]] = bool(found[0, yes].logsumexp(0) > found[0, no].logsumexp(0))
                advance(len(batch))
        return verdicts


@dataclass(frozen=True)
class PythonScorer:
    """A function of the user's own, `function(prompt, reply)`: True, False, or `None` for unscored.

    It is run as it is: a folder is trusted that its user names. A reply on which it fails is unscored, with the reason.
    """

    function: str  # `module:function`; the module is a file of the behaviour's folder
    folder: Path = field(default=Path(), repr=False, compare=False)  # of the behaviour
    source: str = field(init=False)
    # how many replies of all calls so far it failed on, by reason
    unscored: Counter[str] = field(default_factory=Counter, init=False, compare=False, repr=False)
    _call: Callable[[Prompt, str], Any] = field(init=False, compare=False, repr=False)
    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        module, _, name = self.function.partition(":")
        path = self.folder / f"{module}.py"
        if not module.isidentifier() or not name or not path.is_file():
            raise InvalidValueError(
                f"a function is named as module:function, where {path.name} is in the behaviour's folder, got "
                f"{self.function!r}"
            )
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(found)
        except Exception as error:  # the user's own code
            raise InvalidValueError(f"{path.name} fails: {_reason(error)}") from error
        if not callable(call := getattr(found, name, None)):
            raise InvalidValueError(f"{path.name} has no function {name!r}")
        object.__setattr__(self, "source", hashlib.sha256(path.read_bytes()).hexdigest())
        object.__setattr__(self, "_call", call)

    def score(self, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[bool | None]:
        """What the function says of each answer; without one it is unscored. A DataError if it fails on every reply."""
        failed: Counter[str] = Counter()
        found: list[bool | None] = []
        for prompt, reply in zip(prompts, replies, strict=True):
            value = None
            try:
                value = None if reply.answer is None else self._call(prompt, reply.answer)
            except Exception as error:  # the user's own code
                failed[_reason(error)] += 1
            if value is not None and not isinstance(value, bool):
                failed[f"it returned {value!r:.80}, which is neither True, False nor None"] += 1
                value = None
            found.append(value)
        if failed and failed.total() == sum(reply.answer is not None for reply in replies):
            raise DataError(
                f"the scorer {self.function!r} fails on every reply: {failed.most_common(1)[0][0]}. It is given "
                "(prompt, reply) and must return True, False or None."
            )
        self.unscored.update(failed)
        return found


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
