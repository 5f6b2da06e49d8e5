"""What is compared on the command line: edits and steering, each as PATH:STRENGTH."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from steer2edit.core import SteeringVectors, WeightEdit
    from steer2edit.evaluation import Arm
    from steer2edit.models import LanguageModel


@dataclass(frozen=True)
class Given:
    """A path with the strengths it is to be used at."""

    path: Path
    strengths: tuple[float, ...]


def parse_edit(text: str) -> Given:
    """`edit` or `edit:0.5` (or several, `edit:0.5,1`)."""
    path, strengths = _split(text)
    return Given(path, strengths or (1.0,))


def parse_steering(text: str) -> Given:
    """`vectors.safetensors:0.2`, or several strengths, `vectors.safetensors:0.1,0.2`."""
    path, strengths = _split(text)
    if not strengths:
        raise typer.BadParameter(f"--steer takes VECTORS:STRENGTH, as in vectors.safetensors:0.2, got {text!r}.")
    return Given(path, strengths)


def _split(text: str) -> tuple[Path, tuple[float, ...]]:
    """A path may have colons of its own: what follows the last one counts if it is numbers."""
    path, colon, tail = text.rpartition(":")
    try:
        strengths = tuple(float(part) for part in tail.split(","))
        if not all(map(math.isfinite, strengths)):
            raise typer.BadParameter(f"a strength must be a finite number, got {text!r}.")
    except ValueError:
        return Path(text), ()
    return (Path(path), strengths) if colon and path else (Path(text), ())


def load_edits(given: Sequence[Given]) -> "list[tuple[Given, WeightEdit]]":
    """Every edit once, before a model is loaded: a wrong path shall show at once."""
    from steer2edit.artifacts import load_edit

    return [(one, load_edit(one.path)) for one in given]


def load_steering(given: Sequence[Given]) -> "list[tuple[Given, SteeringVectors]]":
    """Every file of vectors once."""
    from steer2edit.artifacts import load_vectors

    return [(one, load_vectors(one.path)) for one in given]


def make_arms(
    model: "LanguageModel",
    edits: "Sequence[tuple[Given, WeightEdit]]",
    steering: "Sequence[tuple[Given, SteeringVectors]]",
    *,
    allow_mismatch: bool = False,
) -> "list[Arm]":
    """The base, then steering, then edits.

    Raises:
        MismatchError: an artifact is for another model or another shape.
    """
    from steer2edit.evaluation import BASE_ARM, edit_arm, steering_arm

    arms = [BASE_ARM]
    several = len({one.path for one, _ in steering}) > 1
    for (one, vectors), name in zip(steering, _names([g for g, _ in steering]), strict=True):
        model.require_fit(vectors, allow_mismatch=allow_mismatch)
        own = [steering_arm(vectors, strength) for strength in one.strengths]
        arms += [replace(arm, label=f"{arm.label} {name}") for arm in own] if several else own
    for (one, edit), name in zip(edits, _names([g for g, _ in edits]), strict=True):
        model.require_fit(edit, allow_mismatch=allow_mismatch)
        arms += [edit_arm(edit, name if s == 1 else f"{name} × {s:g}", s) for s in one.strengths]
    return arms


def _names(given: Sequence[Given]) -> list[str]:
    """The last parts of the paths where those tell different paths apart, else the paths."""
    paths = [one.path.resolve() for one in given]
    short = {path: path.name for path in paths}
    unique = len(set(short.values())) == len(short)
    return [short[path] if unique else str(one.path) for one, path in zip(given, paths, strict=True)]
