"""Contrast sets: positive and negative responses, in train, validation and held-out parts that share no prompt."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from steer2edit.errors import DataError
from steer2edit.models import LanguageModel, Prompt, Sampling, generate
from steer2edit.steering.examples import Example, prompt_key
from steer2edit.steering.labels import Candidate, Label, Labeller, example_text
from steer2edit.steering.rows import SPLITS, Split

SHARES: dict[Split, float] = {"train": 0.6, "validation": 0.2, "held_out": 0.2}
Pair = tuple[Prompt, str]


@dataclass(frozen=True)
class Contrast:
    """Prompts with their responses, by class.

    Args:
        positive: (prompt, response) pairs that show the behaviour.
        negative: pairs that do not.
    """

    positive: tuple[Pair, ...]
    negative: tuple[Pair, ...]

    def counts(self) -> dict[str, int]:
        """Number of responses by class."""
        return {"positive": len(self.positive), "negative": len(self.negative)}

    def pairs(self) -> list[tuple[int, int]]:
        """(index of a positive, of a negative response) to the same request; in their order, where no two are."""
        rows = {prompt_key(prompt): j for j, (prompt, _) in enumerate(self.negative)}
        found = [(i, rows[prompt_key(p)]) for i, (p, _) in enumerate(self.positive) if prompt_key(p) in rows]
        return found or [(i, i) for i in range(min(len(self.positive), len(self.negative)))]


@dataclass(frozen=True)
class ContrastSet:
    """What a steering vector is extracted from and judged on.

    Args:
        name: preset or file.
        parts: the contrast of each split; `train` makes the vector, `validation` diagnoses it, `held_out` is for
            the final figures and is not looked at here.
        notes: JSON-able facts on how it was made.
        decided_by: what of a response decides the behaviour: its first tokens, the whole answer, or its end.
        silent_on: requests on which gated edits are to do nothing, where the behaviour says so.

    Raises:
        DataError: a class of `train` is empty, or two splits share prompts.
    """

    name: str
    parts: dict[Split, Contrast]
    notes: dict[str, Any]
    decided_by: str = "first"
    silent_on: str | None = None

    def __post_init__(self) -> None:
        for label, pairs in (("positive", self.train.positive), ("negative", self.train.negative)):
            if not pairs:
                raise DataError(
                    f"the contrast set {self.name!r} has no {label} response to learn from "
                    f"(train has {self.train.counts()}). {_remedy(self.notes)}"
                )

    @property
    def train(self) -> Contrast:
        """The part that makes the vector."""
        return self.parts["train"]

    @property
    def validation(self) -> Contrast:
        """The part that diagnoses it."""
        return self.parts.get("validation", Contrast((), ()))

    def describe(self) -> dict[str, Any]:
        """JSON-able facts for artifacts."""
        return {"name": self.name, "counts": {s: c.counts() for s, c in self.parts.items()}, **self.notes}


def _remedy(notes: dict[str, Any]) -> str:
    if notes.get("labels"):
        return f"The labels found were {notes['labels']}; another labeller or more prompts may help."
    return "Check the 'label' and 'split' columns."


def build_contrast(
    name: str,
    examples: Sequence[Example],
    model: LanguageModel,
    *,
    labeller: Labeller | None = None,
    splits: Sequence[Split] = ("train", "validation"),
    sampling: Sampling = Sampling(max_new_tokens=24),
    seed: int = 0,
) -> ContrastSet:
    """Assign splits, generate the responses that are missing, label them, and sort them into classes.

    Args:
        name: of the set, for artifacts and messages.
        examples: rows; those without a response are answered by the model.
        model: generates.
        labeller: gives generated replies their label. A row that has a label already keeps its generated reply only
            if the labeller agrees. Needed where rows have no label.
        splits: the parts to build; rows of other parts are not generated for.
        sampling: how replies are generated.
        seed: of the assignment to splits.

    Raises:
        DataError: no labeller for rows without label, an empty class, or splits that share prompts.
    """
    assigned = assign_splits(examples, seed)
    require_disjoint(assigned, name)
    assigned = [e for e in assigned if e.split in splits]
    if empty := [e.key for e in assigned if e.response is not None and not e.response.strip()]:
        raise DataError(f"the contrast set {name!r}: {len(empty)} responses are empty, e.g. to {empty[0][:60]!r}.")
    missing = [e for e in assigned if e.response is None]
    if labeller is None and any(e.label is None for e in assigned):
        raise DataError(
            f"the contrast set {name!r} has rows without a label. Give each row a label, or a labeller that decides: "
            "--labeller refusal|length|reference|module:function."
        )
    replies = generate(model, [e.prompt for e in missing], sampling, description="Generating responses")
    candidates = [Candidate(e.prompt, r, e.reference) for e, r in zip(missing, replies, strict=True)]
    labels = labeller(candidates) if labeller else [e.label for e in missing]
    texts = [example_text(labeller, reply) for reply in replies]
    answered = _settle(assigned, missing, texts, labels)
    notes = {"generated": len(missing), "labels": _tally(labels) if missing else {}, "sampling": asdict(sampling)}
    return ContrastSet(name, {split: _contrast(answered, split) for split in splits}, notes)


def _settle(
    assigned: Sequence[Example],
    missing: Sequence[Example],
    texts: Sequence[str | None],
    labels: Sequence[Label | None],
) -> list[Example]:
    """All rows with response and label; generated ones whose label is `None`, or not the wanted one, are dropped."""
    answered = [e for e in assigned if e.response is not None]
    for example, text, label in zip(missing, texts, labels, strict=True):
        if label is not None and example.label in (None, label) and text:
            answered.append(replace(example, response=text, label=label))
    return answered


def _tally(labels: Iterable[Label | None]) -> dict[str, int]:
    names = [label or "left out" for label in labels]
    return {name: names.count(name) for name in sorted(set(names))}


def _contrast(examples: Sequence[Example], split: Split) -> Contrast:
    def pairs(label: Label) -> tuple[Pair, ...]:
        return tuple((e.prompt, e.response) for e in examples if e.split == split and e.label == label and e.response)

    return Contrast(pairs("positive"), pairs("negative"))


def assign_splits(examples: Sequence[Example], seed: int = 0) -> list[Example]:
    """Give every row without a split one of train 60 %, validation 20 %, held-out 20 %, prompt by prompt.

    Prompts are ordered by a keyed hash, so the assignment depends on the prompts and the seed alone.
    """
    known = {e.key: e.split for e in examples if e.split is not None}
    unassigned = sorted({e.key for e in examples if e.split is None} - known.keys(), key=lambda k: _digest(k, seed))
    first = round(SHARES["train"] * len(unassigned))
    second = round((SHARES["train"] + SHARES["validation"]) * len(unassigned))
    for index, key in enumerate(unassigned):
        known[key] = "train" if index < first else "validation" if index < second else "held_out"
    return [e if e.split else replace(e, split=known[e.key]) for e in examples]


def _digest(key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def require_disjoint(examples: Sequence[Example], name: str) -> None:
    """Require that no prompt is in two splits.

    Raises:
        DataError: it names how many are, and the first.
    """
    prompts = {split: {e.key for e in examples if e.split == split} for split in SPLITS}
    for one, other in (("train", "validation"), ("train", "held_out"), ("validation", "held_out")):
        shared = sorted(prompts[one] & prompts[other])  # type: ignore[index]
        if shared:
            raise DataError(
                f"the contrast set {name!r}: {len(shared)} prompts are in both {one} and {other}, e.g. "
                f"{shared[0][:60]!r}. A prompt may be in one part only: figures on seen prompts mean nothing."
            )
