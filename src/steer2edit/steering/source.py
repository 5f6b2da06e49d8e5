"""From what a user names (a behaviour, a contrast file, two files) or holds (rows) to a contrast set."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steer2edit.models import LanguageModel, Sampling
from steer2edit.steering.behaviour_folder import BehaviourFolder, find_behaviour
from steer2edit.steering.contrast import ContrastSet, assign_splits, build_contrast
from steer2edit.steering.examples import Example, examples_in_memory, read_examples
from steer2edit.steering.labels import find_labeller

Source = str | Path | tuple[Path, Path] | Sequence[Any]
"""A behaviour that comes with the package; a behaviour's folder; a file; two files, positive and negative; or rows in
memory (`examples_in_memory`)."""
IN_MEMORY = "pairs in memory"


def load_contrast(
    source: Source,
    model: LanguageModel,
    *,
    labeller: str | None = None,
    limit: int | None = None,
    sampling: Sampling = Sampling(max_new_tokens=24),
    seed: int = 0,
) -> ContrastSet:
    """The contrast set of a behaviour, of one data file, of two files (positive, negative), or of rows in memory.

    Args:
        source: a behaviour that comes with the package, a behaviour's folder, a file as `read_table` takes it, two
            paths, or rows.
        model: generates the responses that are missing.
        labeller: name or `module:function`; a behaviour brings its own.
        limit: use at most this many prompts of every split.
        sampling: how responses are generated.
        seed: of the assignment to splits.

    Raises:
        DataError: unknown behaviour, bad file, no labeller where one is needed, an empty class.
    """
    examples, found = _examples(source)
    labeller, silent_on = labeller or found.labeller, found.silent_on
    if silent_on not in (None, "benign"):
        silent_on = str(found.file(silent_on) or silent_on)
    chosen = find_labeller(labeller) if labeller else None
    examples = _limited(assign_splits(examples, seed), limit)
    contrast = build_contrast(found.name, examples, model, labeller=chosen, sampling=sampling, seed=seed)
    return replace(contrast, decided_by=found.decided_by, silent_on=silent_on)


def _examples(source: Source) -> tuple[list[Example], BehaviourFolder]:
    """The rows, and the behaviour that they are of; without one, its name alone."""
    if isinstance(source, str | Path):
        found = find_behaviour(source)
        return found.examples(), found
    if not (isinstance(source, tuple) and len(source) == 2 and all(isinstance(one, Path) for one in source)):
        return examples_in_memory(source), BehaviourFolder(name=IN_MEMORY)
    positive, negative = source
    rows = read_examples(positive, "positive") + read_examples(negative, "negative")
    return rows, BehaviourFolder(name=f"{positive.name} against {negative.name}")


def _limited(examples: list[Example], limit: int | None) -> list[Example]:
    """The rows of the first `limit` prompts of every split."""
    if limit is None:
        return examples
    kept: dict[object, dict[str, None]] = {}
    for example in examples:
        keys = kept.setdefault((example.split, example.label), {})
        if len(keys) < limit:
            keys[example.key] = None
    return [e for e in examples if e.key in kept[(e.split, e.label)]]
