"""What may become of an edit's weights, and what the model then refuses."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from steer2edit.artifacts import load_edit, save_checkpoint, save_edit
from steer2edit.core import Editing, Intervention, WeightEdit
from steer2edit.editing import merged, merged_weight
from steer2edit.engines import Engine, TransformersEngine
from steer2edit.models import LanguageModel, load_model
from steer2edit.models.loading import DTYPES
from steer2edit.stress.asking import ask_refusals, edit_strength, some
from steer2edit.stress.persistence.gain_left import Answers, Treated
from steer2edit.stress.persistence.quantisation import WAY_NAMES, WAYS, Way, converted, quantised, weight_format
from steer2edit.stress.stress_test import Subject, Suite

Found = tuple[list[Treated], dict[str, Any]]
"""(what was measured, facts)."""
QUICK_BENIGN = 12


@dataclass(frozen=True)
class Bench:
    """A subject's model, which treatments change for a while, with the prompts it is asked.

    Args:
        subject: what is tested.
        suite: quick or full.
    """

    subject: Subject
    suite: Suite

    @property
    def model(self) -> LanguageModel:
        """The base model."""
        return self.subject.model

    @property
    def edit(self) -> WeightEdit:
        """The edit, at the strength that it is tested at."""
        strength = edit_strength(self.subject)
        return self.subject.edit if strength == 1 else self.subject.edit.scaled(strength)

    @property
    def prompts(self) -> dict[str, list[Any]]:
        """What is asked, by set."""
        return {
            "harmful": some(self.subject, self.suite, self.subject.harmful),
            "benign": some(self.subject, self.suite, self.subject.benign, QUICK_BENIGN),
        }

    def plain(self) -> tuple[Answers, Answers]:
        """Base and edit, untreated."""
        own = Editing(self.subject.edit, edit_strength(self.subject))  # as the arm has it, so that it is remembered
        found = self._ask(self.subject.engine, {"base": None, "edit": own})
        return found["base"], found["edit"]

    def now(self, interventions: Mapping[str, Intervention], model: LanguageModel | None = None) -> dict[str, Answers]:
        """By label, what a model (the subject's own) says as it is now: nothing is remembered."""
        return self._ask(TransformersEngine(model or self.model), interventions)

    def base_now(self) -> Answers:
        """What the model says as it is now."""
        return self.now({"now": None})["now"]

    @contextmanager
    def merged(self, edit: WeightEdit | None = None) -> Iterator[None]:
        """The edit (or another) in the weights."""
        with merged(self.model, edit or self.edit, allow_mismatch=True):  # the subject's edit was let through already
            yield

    def _ask(self, engine: Engine, interventions: Mapping[str, Intervention]) -> dict[str, Answers]:
        found = ask_refusals(replace(self.subject, engine=engine), self.prompts, interventions)
        return {
            label: Answers(found.refused["harmful"][label], found.refused["benign"][label], found.replies[label])
            for label in interventions
        }


@runtime_checkable
class Treatment(Protocol):
    """Something that is done to a model with an edit."""

    def arms(self, suite: Suite) -> int:
        """How many arms are asked, besides the plain base and edit."""

    def passes(self, suite: Suite) -> int:
        """Forward passes besides replies."""

    def treat(self, bench: Bench) -> Found:
        """Do it, and ask."""


@dataclass(frozen=True)
class SavedAndLoaded:
    """The edit as an adapter and as a checkpoint on disk, read again."""

    def arms(self, suite: Suite) -> int:
        """One for each artifact."""
        return 2

    def passes(self, suite: Suite) -> int:
        """None."""
        return 0

    def treat(self, bench: Bench) -> Found:
        """Write both, read both, and ask."""
        adapter, checkpoint = bench.subject.folder / "adapter", bench.subject.folder / "checkpoint"
        save_edit(bench.model, bench.edit, adapter)
        loaded = load_edit(adapter)
        same_edit = _same_edit(loaded, bench.edit)
        from_adapter = bench.now({"adapter": Editing(loaded)})["adapter"]
        save_checkpoint(bench.model, bench.edit, checkpoint, allow_mismatch=True)
        dtype = next(name for name, one in DTYPES.items() if one == bench.model.dtype)
        spread = len({parameter.device for parameter in bench.model.network.parameters()}) > 1
        reloaded = load_model(
            str(checkpoint), dtype=dtype, device="balanced" if spread else str(bench.model.device),
            layout=bench.model.layout, trust_remote_code=bench.model.trust_remote_code,
        )  # fmt: skip
        other = _other_matrices(bench.model, bench.edit, reloaded)
        from_checkpoint = bench.now(
            {"edit": None}, replace(reloaded, tokenizer=bench.model.tokenizer, chat=bench.model.chat)
        )["edit"]
        notes = (
            f"factors {'bit for bit those' if same_edit else 'NOT those'} that were saved",
            "weights bit for bit those of the edit merged in memory"
            if not other
            else f"{other} edited matrices differ from those of the edit merged in memory",
        )
        treated = [
            Treated("adapter", "Saved as an adapter and loaded", from_adapter, note=notes[0]),
            Treated("checkpoint", "Saved as a checkpoint and loaded", from_checkpoint, note=notes[1]),
        ]
        return treated, {"adapter_as_saved": same_edit, "checkpoint_matrices_that_differ": other}


def _same_edit(one: WeightEdit, other: WeightEdit) -> bool:
    return one.sites.keys() == other.sites.keys() and all(
        one.sites[site].row.equal(edit.row) and one.sites[site].output_direction.equal(edit.output_direction)
        for site, edit in other.sites.items()
    )


def _other_matrices(model: LanguageModel, edit: WeightEdit, reloaded: LanguageModel) -> int:
    """How many edited matrices of a reloaded model are not those of the edit merged in memory."""
    return sum(
        not merged_weight(own.weight, edit.sites[site].part(own.columns)).cpu().equal(found.weight.cpu())
        for site in edit.sites
        for own, found in zip(model.sites[site].projections, reloaded.sites[site].projections, strict=True)
    )


@dataclass(frozen=True)
class Casts:
    """The model converted to another dtype, with the edit in the weights or without.

    Args:
        dtypes: names as `load_model` knows them.
    """

    dtypes: Sequence[str] = ("bfloat16", "float16")

    def arms(self, suite: Suite) -> int:
        """Base and edit in each."""
        return 2 * len(self.dtypes)

    def passes(self, suite: Suite) -> int:
        """None."""
        return 0

    def treat(self, bench: Bench) -> Found:
        """Convert, add the edit in float32, round it once, and ask."""
        treated = []
        for name in self.dtypes:
            with converted(bench.model, DTYPES[name]):
                base = bench.base_now()
                with bench.merged():
                    edit = bench.base_now()
            treated.append(Treated(name, f"In the weights in {name}", edit, base))
        return treated, {}


@dataclass(frozen=True)
class Quantised:
    """The weights of all linear layers stored in a number format and taken out again.

    Args:
        quick: ways by format in the quick suite.
        full: the same in the full suite.
    """

    quick: Mapping[str, Sequence[Way]]
    full: Mapping[str, Sequence[Way]]

    def ways(self, suite: Suite) -> Mapping[str, Sequence[Way]]:
        """Ways by format."""
        return self.quick if suite == "quick" else self.full

    def arms(self, suite: Suite) -> int:
        """The base in each format, and the edit in each way."""
        return sum(1 + len(ways) for ways in self.ways(suite).values())

    def passes(self, suite: Suite) -> int:
        """None."""
        return 0

    def treat(self, bench: Bench) -> Found:
        """Store, and ask."""
        treated, ways = [], self.ways(bench.suite)
        for name, own in ways.items():
            beside: dict[str, Intervention] = {"adapter": Editing(bench.edit)} if "adapter" in own else {}
            with quantised(bench.model, weight_format(name)):
                found = bench.now({"base": None, **beside})
            for way in own:
                if way != "adapter":
                    with quantised(bench.model, weight_format(name), bench.edit, way, allow_mismatch=True):
                        found[way] = bench.base_now()
                what = f"In {name}, {WAY_NAMES[way]}"
                treated.append(Treated(f"{name}/{way}", what, found[way], found["base"], _NO_CALIBRATION, name))
        return treated, {"formats": {name: weight_format(name).grid for name in ways}}


_NO_CALIBRATION = "rounded to nearest without calibration data; embeddings and output layer as they were"
QUICK_FORMATS: dict[str, tuple[Way, ...]] = {"int8": ("rounded",), "int4": ("rounded", "adapter")}
FULL_FORMATS: dict[str, tuple[Way, ...]] = {
    "int8": WAYS,
    "fp8": ("rounded", "adapter"),
    "int4": WAYS,
    "nf4": WAYS,
    "mxfp4": ("rounded", "adapter"),
}
