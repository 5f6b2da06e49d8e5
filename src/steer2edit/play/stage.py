"""What visitors have chosen, and the one model for all of them.

It runs for one at a time, because interventions are hooks of its network. A session is a value, so that two of them
share nothing that one could change.
"""

import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steer2edit.api.edit import Edit
from steer2edit.artifacts import load_edit, load_vectors
from steer2edit.core import Editing, Steering, SteeringVectors, WeightEdit
from steer2edit.engines import RememberingEngine, TransformersEngine
from steer2edit.errors import InvalidValueError
from steer2edit.evaluation import BASE_ARM, Arm, DriftTask, calibrate, edit_arm, steering_arm
from steer2edit.models import LanguageModel, Message, Sampling
from steer2edit.recipes.making import EFFECT_KL
from steer2edit.steering.presets import safety_prompts
from steer2edit.steering.secant import Calibration

if TYPE_CHECKING:
    from steer2edit.play.replies import Contributions

_BENIGN = 16  # requests that drift is matched on: enough for a slider, and seconds
_BEGIN = 0.1  # where the search for a strength of steering begins
_EDIT_FILES = ("adapter_config.json", "adapter_model.safetensors", "steer2edit.json", "steer2edit.safetensors")

Off = frozenset[str]
"""Names of components, sites and layers."""


@dataclass(frozen=True)
class Session:
    """The state of one visitor's page."""

    edits: Mapping[str, WeightEdit]  # to choose from, by the path they are loaded from
    vectors: Mapping[str, SteeringVectors]  # likewise
    edit: str | None = None  # the path of the chosen edit; `None` without
    steering: str | None = None  # the path of the chosen vectors; `None` without
    strength: float = 1.0  # of the edit
    drift: float = 1.0  # how strong steering is; at 1 it spends the drift that was matched
    # the edit's strength, and what it was without, when its drift was matched
    matched: tuple[float, Off] = (1.0, frozenset())
    off: Off = frozenset()  # what the edit is without
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=96))  # how replies are drawn
    # the conversation so far by kind of arm, as each arm had it
    turns: Mapping[str, tuple[Message, ...]] = field(default_factory=dict)
    added: "Contributions | None" = None  # what the edit added to its last reply

    @property
    def artifacts(self) -> list[WeightEdit | SteeringVectors]:
        """All that can be chosen."""
        return [*self.edits.values(), *self.vectors.values()]

    def choosing(self, edit: str | None, steering: str | None, **others: Any) -> "Session":
        """With these chosen; another edit begins whole, and what belonged to the one before is matched anew."""
        if edit != self.edit:
            others |= {"off": frozenset(), "matched": (1.0, frozenset()), "added": None}
        return replace(self, edit=edit, steering=steering, **others)

    def switched(self, name: str) -> "Session":
        """With a component, a site or a layer switched off, or on again."""
        if self.edit is not None:
            self.edits[self.edit].without(name)
        return replace(self, off=self.off ^ {name})

    def chosen_edit(self) -> WeightEdit | None:
        """The edit without what is switched off, at its own scale."""
        return None if self.edit is None else self.edits[self.edit].without(*self.off)

    def arms(self, steering: float) -> list[Arm]:
        """Base, steered (at this strength) and edited, as far as they are chosen."""
        arms, edit = [BASE_ARM], self.chosen_edit()
        if self.steering is not None:
            arms.append(replace(steering_arm(self.vectors[self.steering], steering), label="steered"))
        return arms if edit is None else [*arms, edit_arm(edit, "edited", self.strength)]

    def asked(self, arm: Arm, prompt: str) -> list[Message]:
        """The conversation of an arm with the visitor's next words; an arm that is new goes on from the base's."""
        return [*self.turns.get(arm.kind, self.turns.get("base", ())), {"role": "user", "content": prompt}]


def read_artifacts(paths: Sequence[Path]) -> Session:
    """A session with the edits (folders) and vectors (files) of these paths, the first of each chosen."""
    edits = {str(path): load_edit(path) for path in paths if path.is_dir()}
    vectors = {str(path): load_vectors(path) for path in paths if not path.is_dir()}
    return Session(edits, vectors, next(iter(edits), None), next(iter(vectors), None))


class Stage:
    """What all sessions share: the base model, what a new visitor finds, and where edits are saved.

    The folder is `None` for a page that others can reach, who download edits instead; `loading` is how the model was
    loaded, by the keywords of `load`. A MismatchError for an artifact of another model.
    """

    def __init__(
        self, model: LanguageModel, first: Session, folder: Path | None, loading: Mapping[str, Any] | None = None
    ) -> None:
        self.model, self.first, self.folder, self.loading = model, first, folder, loading or {}
        self._lock = threading.Lock()
        self._engine = RememberingEngine(TransformersEngine(model))
        self._units: dict[Any, Calibration] = {}
        for artifact in first.artifacts:
            model.require_fit(artifact)

    @contextmanager
    def engine(self) -> Iterator[RememberingEngine]:
        """The engine, while nobody else runs the model; never held over a `yield`: a visitor may not come back."""
        with self._lock:
            yield self._engine

    def unit(self, session: Session) -> Calibration | None:
        """The strength at which steering spends the drift that was matched; `None` without vectors.

        That is the edit's on benign requests, or KL .03 where there is no edit; an InvalidValueError if it is none.
        """
        if session.steering is None:
            return None
        vectors, (strength, off) = session.vectors[session.steering], session.matched
        edit = None if session.edit is None else session.edits[session.edit]
        key = vectors.digest(), edit and edit.digest(), strength, off
        with self.engine() as engine:
            if key not in self._units:
                task, target = DriftTask("", safety_prompts("validation")[1][:_BENIGN]), EFFECT_KL
                if edit is not None:
                    (found,) = task.measure(engine, [Editing(edit.without(*off), strength)])
                    target = found.metrics["kl"].value or 0.0
                if target <= 0:
                    raise InvalidValueError(
                        f"the edit causes no drift at strength {strength:g}, so steering has none to match. Give it "
                        "another strength, or switch a component on."
                    )
                (self._units[key],) = calibrate(engine, [(lambda s: Steering(vectors, s), _BEGIN)], task, target)
            return self._units[key]

    def arms(self, session: Session) -> list[Arm]:
        """What is compared; the strength of steering is rounded to what is shown, so that it can be repeated."""
        unit = self.unit(session)
        return session.arms(0.0 if unit is None else float(f"{session.drift * unit.strength:.4g}"))

    def received(self, session: Session, files: Sequence[Path]) -> Session:
        """The session with what was dropped on the page: the files of an edit's folder, or one file of vectors."""
        by_name = {path.name: path for path in files}
        if len(files) == 1 and files[0].name not in _EDIT_FILES:
            ((name, path),) = by_name.items()
            vectors = load_vectors(path)
            self.model.require_fit(vectors)
            return replace(session, vectors={**session.vectors, name: vectors}).choosing(session.edit, name)
        if missing := [name for name in _EDIT_FILES if name not in by_name]:
            raise InvalidValueError(
                f"an edit is all files of its folder: drop {', '.join(missing)} as well. Vectors are one file."
            )
        with tempfile.TemporaryDirectory() as scratch:
            for name in _EDIT_FILES:
                shutil.copyfile(by_name[name], Path(scratch) / name)
            edit = load_edit(scratch)
        self.model.require_fit(edit)
        name = f"dropped-edit-{edit.digest()[:6]}"
        return replace(session, edits={**session.edits, name: edit}).choosing(name, session.steering)

    def save(self, session: Session, name: str) -> Path:
        """Write the edit as it is set, at its strength and without what is switched off, into a new folder."""
        if (edit := session.chosen_edit()) is None:
            raise InvalidValueError("no edit is chosen, so there is none to save.")
        if Path(name).name != name or name in ("", ".", ".."):
            raise InvalidValueError(f"{name!r} is no name for a folder: give one without slashes, such as my-edit.")
        place = (self.folder or Path(tempfile.mkdtemp())) / name
        with self.engine():
            (Edit.of(edit) * session.strength).save(place, model=self.model)
        return place
