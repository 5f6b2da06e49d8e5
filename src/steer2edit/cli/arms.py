"""What is compared on the command line: edits and steering, each as PATH:STRENGTH."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import typer

from steer2edit.errors import InvalidValueError
from steer2edit.settings import shared
from steer2edit.settings.declared import Checked, read_numbers

if TYPE_CHECKING:
    from steer2edit.core import SteeringVectors, WeightEdit
    from steer2edit.evaluation import Arm
    from steer2edit.models import LanguageModel

Artifact = TypeVar("Artifact")


@dataclass(frozen=True)
class Given(Generic[Artifact]):
    """An artifact with the strengths it is to be used at."""

    path: Path
    strengths: tuple[float, ...]
    artifact: Artifact


def load_given(
    texts: Sequence[str], load: Callable[[Path], Artifact], strengths: tuple[float, ...] = ()
) -> list[Given[Artifact]]:
    """The artifacts of every PATH:STRENGTH (or several, PATH:0.5,1).

    Args:
        texts: as they were typed.
        load: reads an artifact.
        strengths: where none is given; one must be given if there are none here.
    """
    found = []
    for text in texts:
        path, own = _split(text)
        if not own and not strengths:
            raise typer.BadParameter(f"--steer takes VECTORS:STRENGTH, as in vectors.safetensors:0.2, got {text!r}.")
        found.append(Given(path, own or strengths, load(path)))
    return found


def _split(text: str) -> tuple[Path, tuple[float, ...]]:
    """A path may have colons of its own: what follows the last one counts if it is numbers."""
    path, _, tail = text.rpartition(":")
    try:
        strengths = read_numbers("", tail) if path else ()
    except InvalidValueError:
        strengths = ()
    if not all(map(math.isfinite, strengths)):
        raise typer.BadParameter(f"a strength must be a finite number, got {text!r}.")
    return (Path(path), strengths) if strengths else (Path(text), ())


@dataclass(frozen=True)
class Loaded:
    """What is compared with the base."""

    edits: "list[Given[WeightEdit]]"
    steering: "list[Given[SteeringVectors]]"
    allow_mismatch: bool = False

    @property
    def metadata(self) -> list[Mapping[str, Any]]:
        """Of all artifacts: what a model is loaded like."""
        return [*(one.artifact.metadata for one in self.edits), *(one.artifact.metadata for one in self.steering)]

    def arms(self, model: "LanguageModel") -> "list[Arm]":
        """The base, then steering, then edits.

        Raises:
            MismatchError: an artifact is for another model or another shape.
        """
        from steer2edit.evaluation import BASE_ARM, edit_arm, steering_arm

        arms = [BASE_ARM]
        several = len({one.path for one in self.steering}) > 1
        for one, name in zip(self.steering, _names(self.steering), strict=True):
            model.require_fit(one.artifact, allow_mismatch=self.allow_mismatch)
            own = [steering_arm(one.artifact, strength) for strength in one.strengths]
            arms += [replace(arm, label=f"{arm.label} {name}") for arm in own] if several else own
        for edit, name in zip(self.edits, _names(self.edits), strict=True):
            model.require_fit(edit.artifact, allow_mismatch=self.allow_mismatch)
            arms += [edit_arm(edit.artifact, name if s == 1 else f"{name} × {s:g}", s) for s in edit.strengths]
        return arms


@dataclass(frozen=True)
class Interventions(Checked):
    """Edits and steering that are compared with the base."""

    edit: Annotated[
        list[str] | None, typer.Option(metavar="DIR[:STRENGTH]", help="An edit; may be given several times.")
    ] = None
    steer: Annotated[
        list[str] | None,
        typer.Option(metavar="VECTORS:STRENGTH", help="Activation steering; may be given several times."),
    ] = None
    allow_mismatch: shared.AllowMismatch = False

    def load(self) -> Loaded:
        """All artifacts, before a model is loaded: a wrong path shall show at once."""
        from steer2edit.artifacts import load_edit, load_vectors

        edits, steering = load_given(self.edit or (), load_edit, (1.0,)), load_given(self.steer or (), load_vectors)
        return Loaded(edits, steering, self.allow_mismatch)


def _names(given: Sequence[Given[Artifact]]) -> list[str]:
    """The last parts of the paths where those tell different paths apart, else the paths."""
    paths = [one.path.resolve() for one in given]
    short = {path: path.name for path in paths}
    unique = len(set(short.values())) == len(short)
    return [short[path] if unique else str(one.path) for one, path in zip(given, paths, strict=True)]
