"""Contrast sets: positive and negative responses, in train, validation and held-out parts that share no prompt."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from steer2edit.errors import DataError
from steer2edit.models import LanguageModel, Prompt, Sampling, generate
from steer2edit.steering.behaviour_folder import BehaviourFolder, find_behaviour
from steer2edit.steering.examples import Example, examples_in_memory, prompt_key, read_examples
from steer2edit.steering.labels import Candidate, Label, Labeller, example_text, find_labeller
from steer2edit.steering.rows import SPLITS, Split

Pair = tuple[Prompt, str]
Source = str | Path | tuple[Path, Path] | Sequence[Any]
"""A behaviour that comes with the package; a behaviour's folder; a file; two files, positive and negative; or rows in
memory (`examples_in_memory`)."""
IN_MEMORY = "pairs in memory"
_BUILT: tuple[Split, ...] = ("train", "validation")
_SHORT = Sampling(max_new_tokens=24)


@dataclass(frozen=True)
class Contrast:
    """Prompts with their responses, by class."""

    positive: tuple[Pair, ...]  # (prompt, response) pairs that show the behaviour
    negative: tuple[Pair, ...]  # pairs that do not

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

    Raises:
        DataError: a class of `train` is empty.
    """

    name: str  # of a behaviour, or of what it was read from
    # the contrast of each split: `train` makes the vector, `validation` diagnoses it, `held_out` is not looked at here
    parts: dict[Split, Contrast]
    notes: dict[str, Any]  # JSON-able facts on how it was made
    decided_by: str = "first"  # what of a response decides the behaviour: its first tokens, all of the answer, its end
    silent_on: str | None = None  # requests on which gated edits are to do nothing, where the behaviour says so

    def __post_init__(self) -> None:
        remedy = "Check the 'label' and 'split' columns."
        if labels := self.notes.get("labels"):
            remedy = f"The labels found were {labels}; another labeller or more prompts may help."
        for label, count in (counts := self.train.counts()).items():
            if not count:
                raise DataError(
                    f"the contrast set {self.name!r} has no {label} response to learn from (train has {counts}). "
                    f"{remedy}"
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


def load_contrast(
    source: Source,
    model: LanguageModel,
    *,
    labeller: str | None = None,
    limit: int | None = None,
    sampling: Sampling = _SHORT,
    seed: int = 0,
) -> ContrastSet:
    """The contrast set of a behaviour, one or two files (positive, negative) or rows: at most `limit` prompts a split.

    Raises a DataError for an unknown behaviour, a bad file, rows that need a labeller, or an empty class.
    """
    if isinstance(source, str | Path):
        found = find_behaviour(source)
        examples = found.examples()
    elif isinstance(source, tuple) and len(source) == 2 and all(isinstance(one, Path) for one in source):
        positive, negative = source
        found = BehaviourFolder(name=f"{positive.name} against {negative.name}")
        examples = read_examples(positive, "positive") + read_examples(negative, "negative")
    else:
        found, examples = BehaviourFolder(name=IN_MEMORY), examples_in_memory(source)
    labeller, silent_on = labeller or found.labeller, found.silent_on
    if silent_on not in (None, "benign"):
        silent_on = str(found.file(silent_on) or silent_on)
    chosen = find_labeller(labeller) if labeller else None
    contrast = build_contrast(found.name, examples, model, labeller=chosen, limit=limit, sampling=sampling, seed=seed)
    return replace(contrast, decided_by=found.decided_by, silent_on=silent_on)


def build_contrast(
    name: str,
    examples: Sequence[Example],
    model: LanguageModel,
    *,
    labeller: Labeller | None = None,
    limit: int | None = None,
    sampling: Sampling = _SHORT,
    seed: int = 0,
) -> ContrastSet:
    """Assign splits, generate the responses that are missing, label them, and sort them into classes.

    Held-out rows are neither generated for nor kept: they are for the final figures. A row that has a label already
    keeps its generated reply only if the labeller agrees. A DataError for rows without a label and no labeller, an
    empty class, or splits that share prompts.
    """
    assigned = assign_splits(examples, seed)
    require_disjoint(assigned, name)
    if limit is not None:
        kept: dict[object, dict[str, None]] = {}
        for example in assigned:
            keys = kept.setdefault((example.split, example.label), {})
            if len(keys) < limit:
                keys[example.key] = None
        assigned = [e for e in assigned if e.key in kept[(e.split, e.label)]]
    assigned = [e for e in assigned if e.split in _BUILT]
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
    answered = [e for e in assigned if e.response is not None]
    for example, reply, label in zip(missing, replies, labels, strict=True):
        # dropped where the labeller leaves it out, or disagrees with the row
        if label is not None and example.label in (None, label) and (text := example_text(labeller, reply)):
            answered.append(replace(example, response=text, label=label))

    def pairs(split: Split, label: Label) -> tuple[Pair, ...]:
        return tuple((e.prompt, e.response) for e in answered if e.split == split and e.label == label and e.response)

    tally = dict(sorted(Counter(label or "left out" for label in labels).items()))
    parts = {split: Contrast(pairs(split, "positive"), pairs(split, "negative")) for split in _BUILT}
    return ContrastSet(name, parts, {"generated": len(missing), "labels": tally, "sampling": asdict(sampling)})


def assign_splits(examples: Sequence[Example], seed: int = 0) -> list[Example]:
    """Give every row without a split one of train 60 %, validation 20 %, held-out 20 %, prompt by prompt.

    Prompts are ordered by a keyed hash, so the assignment depends on the prompts and the seed alone.
    """

    def digest(key: str) -> bytes:
        return hashlib.sha256(f"{seed}:{key}".encode()).digest()

    known = {e.key: e.split for e in examples if e.split is not None}
    unassigned = sorted({e.key for e in examples if e.split is None} - known.keys(), key=digest)
    first, second = (round(share * len(unassigned)) for share in (0.6, 0.8))
    for index, key in enumerate(unassigned):
        known[key] = "train" if index < first else "validation" if index < second else "held_out"
    return [e if e.split else replace(e, split=known[e.key]) for e in examples]


def require_disjoint(examples: Sequence[Example], name: str) -> None:
    """Require that no prompt is in two splits; a DataError says how many are, and the first."""
    prompts = {split: {e.key for e in examples if e.split == split} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        if shared := sorted(prompts[one] & prompts[other]):
            raise DataError(
                f"the contrast set {name!r}: {len(shared)} prompts are in both {one} and {other}, e.g. "
                f"{shared[0][:60]!r}. A prompt may be in one part only: figures on seen prompts mean nothing."
            )
