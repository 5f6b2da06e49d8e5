"""What visitors have chosen, and the one model for all of them.

It runs for one at a time, because interventions are hooks of its network. A session is a value, so that two of them
share nothing that one could change.
"""

import shlex
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
SAVED = "my-edit"
"""The folder that an edit is saved as, unless it is given another name."""

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


def as_code(stage: Stage, session: Session, prompt: str) -> tuple[str, str]:
    """The command and the Python that give the replies that are seen; of a conversation, the command that begins one.

    The prompt is what would be said if nothing was yet.
    """
    base, *_, last = arms = stage.arms(session)
    words = ["steer2edit", "chat", stage.model.name]
    lines = ["import steer2edit as s2e", ""]
    keywords = [repr(stage.model.name), *(f"{key}={value!r}" for key, value in stage.loading.items())]
    sampling: dict[str, Any] = {"max_new_tokens": session.sampling.max_new_tokens}
    if session.sampling.temperature:
        sampling["temperature"] = session.sampling.temperature
    if session.edit is not None:
        off = ", ".join(map(repr, sorted(session.off)))
        lines.append(f"edit = s2e.load_edit({session.edit!r})" + (f".without({off})" if off else ""))
        words += ["--edit", SAVED if off else f"{session.edit}:{session.strength:g}"]
    if session.steering is not None:
        lines.append(f"vectors = s2e.load_vectors({session.steering!r})")
    if last is not base:
        keywords.append(f"like={'vectors' if session.edit is None else 'edit'}.metadata")
    lines.append(f"model = s2e.load({', '.join(keywords)})")
    for arm in arms:
        turns = [dict(message) for message in session.turns.get(arm.kind, ())[:-1]]
        said = turns[0]["content"] if len(turns) == 1 else turns or prompt
        given = ", ".join([repr(said), *(f"{key}={value!r}" for key, value in sampling.items())])
        if arm.kind == "base":
            lines.append(f"print(model.reply({given}))")
            words[3:3] = [said] if isinstance(said, str) else []
            continue
        name, strength = {"edit": "edit", "steering": "vectors"}[arm.kind], arm.parameters["strength"]
        lines += [f"with {name}.on(model, {strength:g}):", f"    print(model.reply({given}))"]
        words += ["--steer", f"{session.steering}:{strength:g}"] if arm.kind == "steering" else []
    for key, value in {**sampling, **stage.loading}.items():
        option = f"--{key.replace('_', '-')}"
        words += [option] if value is True else [option, str(value)]
    note = f"# parts are switched off: save the edit first, as {SAVED}\n" if session.off else ""
    return note + shlex.join(words), "\n".join(lines)
