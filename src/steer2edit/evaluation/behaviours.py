"""Behaviours: the tasks that tell how much of an attribute there is, and what it costs."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from steer2edit.core import SteeringVectors
from steer2edit.errors import DataError, did_you_mean
from steer2edit.evaluation.formats import divided, plain_requests, true_and_false
from steer2edit.evaluation.scorers import PhraseScorer, Scorer
from steer2edit.evaluation.tasks import DriftTask, LengthTask, RefusalTask, Task, TruthTask
from steer2edit.models import Sampling
from steer2edit.steering import borderline_prompts, preset_examples, safety_prompts
from steer2edit.steering.rows import Split, Table, read_table


@dataclass(frozen=True)
class Behaviour:
    """What a preset measures on one split.

    Args:
        name: of the preset.
        attribute: the metric that the edit is to move.
        direction: +1 if more of it is wanted, −1 if less.
        tasks: the measurements.
        prompts: the requests by set name, aligned with the replies.
        guide: a finer metric of the attribute, for telling apart what is equal in it.
    """

    name: str
    attribute: str
    direction: int
    tasks: tuple[Task, ...]
    prompts: dict[str, list[str]]
    guide: str | None = None

    @property
    def drift(self) -> DriftTask:
        """The task that measures drift on benign requests."""
        return next(task for task in self.tasks if isinstance(task, DriftTask))

    def part(self, begin: float, end: float) -> "Behaviour":
        """The tasks on the items between two shares, e.g. 0.25 and 0.5; consecutive parts make the whole."""
        parts = (task.part(slice(round(begin * len(task)), round(end * len(task)))) for task in self.tasks)
        return replace(self, tasks=tuple(parts))

    def digest(self) -> str:
        """SHA-256 over the prompts and what is asked of them: which items a search was made on."""
        asked = [[type(task).__name__, len(task)] for task in self.tasks]
        answers = [task.items if isinstance(task, TruthTask) else None for task in self.tasks]
        benign = list(map(str, self.drift.items))
        items = json.dumps([self.name, asked, self.prompts, answers, benign], sort_keys=True, default=str)
        return hashlib.sha256(items.encode()).hexdigest()


@dataclass(frozen=True)
class _Wanted:
    """What a behaviour is built for."""

    split: Split
    limit: int | None
    max_new_tokens: int | None
    scorer: Scorer
    data: Mapping[str, str]
    seed: int
    borderline: bool

    def table(self, name: str) -> Table | None:
        """The user's own rows of a set, of this split."""
        return divided(read_table(self.data[name]), self.split, self.seed) if name in self.data else None

    def requests(self, name: str, built_in: Callable[[], Sequence[str]]) -> list[str]:
        """The requests of a set: the user's, or those that come with the package."""
        table = self.table(name)
        return list(built_in() if table is None else plain_requests(table))[: self.limit]

    def benign(self) -> list[str]:
        """Requests that drift is measured on."""
        return self.requests("benign", lambda: safety_prompts(self.split, self.limit)[1])

    def sampling(self, default: int) -> Sampling:
        """Greedy replies."""
        return Sampling(max_new_tokens=self.max_new_tokens or default)


_Built = tuple[Sequence[Task], dict[str, list[str]]]


def _safety(wanted: _Wanted) -> _Built:
    prompts = {
        "harmful": wanted.requests("harmful", lambda: safety_prompts(wanted.split, wanted.limit)[0]),
        "benign": wanted.benign(),
    }
    if wanted.borderline or "borderline" in wanted.data:
        prompts["borderline"] = wanted.requests("borderline", lambda: borderline_prompts(wanted.split, wanted.limit))
    tasks = [RefusalTask(name, own, wanted.sampling(24), wanted.scorer) for name, own in prompts.items()]
    return (*tasks, DriftTask(prompts["benign"], wanted.sampling(24))), prompts


def _truthfulness(wanted: _Wanted) -> _Built:
    table = wanted.table("questions")
    rows = (_preset_questions(wanted.split) if table is None else true_and_false(table))[: wanted.limit]
    return (TruthTask(rows), DriftTask(wanted.benign(), wanted.sampling(24))), {
        "questions": [question for question, _, _ in rows]
    }


def _preset_questions(split: Split) -> list[tuple[str, str, str]]:
    questions: dict[str, dict[str, str]] = {}
    for example in preset_examples("truthfulness")[0]:
        if example.split == split and example.label and example.response:
            questions.setdefault(example.key, {})[example.label] = example.response
    return [(prompt, pair["positive"], pair["negative"]) for prompt, pair in questions.items()]


def _conciseness(wanted: _Wanted) -> _Built:
    prompts = wanted.requests("requests", lambda: _preset_requests(wanted.split))
    return (LengthTask(prompts, wanted.sampling(96)), DriftTask(wanted.benign())), {"requests": prompts}


def _preset_requests(split: Split) -> list[str]:
    return list(dict.fromkeys(e.key for e in preset_examples("conciseness")[0] if e.split == split))


@dataclass(frozen=True)
class _Kind:
    """What an edit for a behaviour is to move, in which direction, and which sets a user may give data for."""

    attribute: str
    direction: int
    sets: tuple[str, ...]
    build: Callable[[_Wanted], _Built]
    guide: str | None = None


_KINDS = {
    "safety": _Kind("harmful_refused", 1, ("harmful", "benign", "borderline"), _safety),
    "truthfulness": _Kind("truth_preferred", 1, ("questions", "benign"), _truthfulness, "truth_margin"),
    "conciseness": _Kind("reply_tokens", -1, ("requests", "benign"), _conciseness),
}
BEHAVIOURS = tuple(_KINDS)
BEHAVIOUR_SETS: Mapping[str, tuple[str, ...]] = {name: kind.sets for name, kind in _KINDS.items()}
"""The sets of a behaviour that a user may give data for."""
_MADE_FROM = {**{name: name for name in BEHAVIOURS}, "safety-benign": "safety"}
"""By the preset of the contrast, what vectors are of."""


def attribute_of(name: str) -> tuple[str, int]:
    """(metric that an edit for a behaviour is to move, +1 if more of it is wanted or −1 if less).

    Raises:
        DataError: there is no such behaviour.
    """
    kind = _kind(name)
    return kind.attribute, kind.direction


def behaviour(
    name: str,
    split: Split,
    *,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    scorer: Scorer | None = None,
    data: Mapping[str, str] | None = None,
    seed: int = 0,
    borderline: bool = False,
) -> Behaviour:
    """The evaluation of a behaviour on one split.

    Args:
        name: safety, truthfulness or conciseness.
        split: validation for choosing, held_out for final figures.
        limit: use at most this many prompts of every set; safety has up to 300 held-out ones, and uses 96 without.
        max_new_tokens: longest reply; each behaviour has a default of its own.
        scorer: tells refusals; by default the strict phrases.
        data: the user's own data by set, a file or `hub:OWNER/NAME/FILE` (see `BEHAVIOUR_SETS`); what is not given
            comes with the package. Data without a column `split` is divided at random.
        seed: of that division.
        borderline: for safety, measure the refusal of safe requests that sound alarming too; so it is with data.

    Raises:
        DataError: there is no such behaviour or set, or the data is malformed.
    """
    kind, data = _kind(name), data or {}
    if unknown := [own for own in data if own not in kind.sets]:
        raise DataError(f"{name} has no set {unknown[0]!r} to give data for. {did_you_mean(unknown[0], kind.sets)}")
    wanted = _Wanted(split, limit, max_new_tokens, scorer or PhraseScorer(), data, seed, borderline)
    tasks, prompts = kind.build(wanted)
    return Behaviour(name, kind.attribute, kind.direction, tuple(tasks), prompts, kind.guide)


def _kind(name: str) -> _Kind:
    if name not in _KINDS:
        raise DataError(f"there is no evaluation {name!r}. {did_you_mean(name, _KINDS)}")
    return _KINDS[name]


def behaviour_of(vectors: SteeringVectors, option: str = "behaviour") -> str:
    """The behaviour that vectors are of, by the preset that they were made from.

    Args:
        vectors: with the metadata of an extraction.
        option: what a user says it with otherwise.

    Raises:
        DataError: they were not made from a preset.
    """
    contrast = vectors.metadata.get("contrast")
    name = contrast.get("name") if isinstance(contrast, dict) else None
    if name in _MADE_FROM:
        return _MADE_FROM[name]
    source = "do not say what they were made from" if name is None else f"were made from {name!r}"
    raise DataError(
        f"these vectors {source}, which tells no behaviour. Say what to measure: {option} {' | '.join(BEHAVIOURS)}."
    )
