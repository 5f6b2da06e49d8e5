"""What a visitor has chosen. A session is a value, so that two of them share nothing that one could change."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from steer2edit.core import SteeringVectors, WeightEdit
from steer2edit.evaluation import BASE_ARM, Arm, edit_arm, steering_arm
from steer2edit.models import Message, Sampling

if TYPE_CHECKING:
    from steer2edit.play.replies import Contributions

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
