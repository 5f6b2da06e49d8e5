"""From what a user names (a preset, one file, two files) to a contrast set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steer2edit.models import LanguageModel, Sampling
from steer2edit.steering.contrast import ContrastSet, assign_splits, build_contrast
from steer2edit.steering.data_files import HUB
from steer2edit.steering.examples import Example, examples_in_memory, read_examples
from steer2edit.steering.labels import find_labeller
from steer2edit.steering.presets import PRESETS, preset_examples

Source = str | Path | tuple[Path, Path] | Sequence[Any]
"""A preset's name; a file; two files, positive and negative; or rows in memory (`examples_in_memory`)."""
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
    """The contrast set of a preset, of one data file, of two files (positive, negative), or of rows in memory.

    Args:
        source: preset name, a file as `read_table` takes it, two paths, or rows.
        model: generates the responses that are missing.
        labeller: name or `module:function`; a preset brings its own.
        limit: use at most this many prompts of every split.
        sampling: how responses are generated.
        seed: of the assignment to splits.

    Raises:
        DataError: unknown preset, bad file, no labeller where one is needed, an empty class.
    """
    examples, name = _examples(source)
    if isinstance(source, str) and source in PRESETS:
        labeller = labeller or preset_examples(source)[1]
    chosen = find_labeller(labeller) if labeller else None
    examples = _limited(assign_splits(examples, seed), limit)
    return build_contrast(name, examples, model, labeller=chosen, sampling=sampling, seed=seed)


def _examples(source: Source) -> tuple[list[Example], str]:
    if not isinstance(source, str | Path):
        if not (isinstance(source, tuple) and len(source) == 2 and all(isinstance(one, Path) for one in source)):
            return examples_in_memory(source), IN_MEMORY
        positive, negative = source
        name = f"{positive.name} against {negative.name}"
        return read_examples(positive, "positive") + read_examples(negative, "negative"), name
    if isinstance(source, str) and (source in PRESETS or not (Path(source).suffix or source.startswith(HUB))):
        return preset_examples(source)[0], source
    return read_examples(source), Path(source).name


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
