"""What may become of a model's weights, and what is left of the gain then: every arm, in every treatment.

The base is treated as it is, and steering and an adapter of the edit are hooks on it. What is an edit of the weights
(the edit, ROSI, ablation) is merged into them first, and treated with them.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from steer2edit.core import Editing, Intervention, WeightEdit
from steer2edit.editing import merged
from steer2edit.engines import TransformersEngine
from steer2edit.models import LanguageModel
from steer2edit.models.fine_tuning import FineTune, edit_left, fine_tuned
from steer2edit.steering.presets import helpful_answers
from steer2edit.stress.findings import StressResult
from steer2edit.stress.quantisation import FORMATS, quantised
from steer2edit.stress.subject import Replies, Subject, ask, ask_plain, by_arm, in_form
from steer2edit.stress.verdicts import ADAPTER, attribute_line

Hold = Callable[[LanguageModel, WeightEdit | None], AbstractContextManager[Mapping[str, Any] | None]]
"""(model, the edit that is in its weights, if any) → a context in which the weights are treated; yields facts."""


@dataclass(frozen=True)
class Treatment:
    """Something that is done to weights: a line of a test."""

    name: str  # of the line
    what: str  # begins the sentence
    hold: Hold  # does it, for a while
    note: str = ""  # what a reader must know


def treated(subject: Subject, treatments: Sequence[Treatment]) -> StressResult:
    """A line for each treatment, with all arms."""
    plain, findings, kept = ask_plain(subject, subject.requests), [], {}
    for one in treatments:
        kept[one.name] = replies = subject.keep(one.name, partial(_ask_treated, subject, one))
        left = [f"{arm} {own['edit_left']:.0%}" for arm, own in replies.facts.items() if "edit_left" in own]
        note = " ".join(filter(None, [one.note, f"Still in the weights: {', '.join(left)}." if left else ""]))
        findings.append(attribute_line(subject, one.name, one.what, replies, plain, decides=True, note=note))
    return StressResult(findings, by_arm(kept), {name: dict(own.facts) for name, own in kept.items()})


def _ask_treated(subject: Subject, treatment: Treatment) -> Replies:
    """Replies of every arm under a treatment; facts by arm."""
    arms, model, adapter = subject.interventions, subject.model, subject.interventions[subject.edited]
    hooks: dict[str, Intervention] = {label: own for label, own in arms.items() if not isinstance(own, Editing)}
    every: list[tuple[WeightEdit | None, dict[str, Intervention]]] = [(None, {**hooks, ADAPTER: adapter})]
    every += [(own.edit.scaled(own.strength), {label: None}) for label, own in arms.items() if isinstance(own, Editing)]
    replies = Replies({})
    for edit, asked in every:
        begin = time.monotonic()
        held = nullcontext() if edit is None else merged(model, edit, allow_mismatch=True)
        with held, treatment.hold(model, edit) as facts:
            changed = replace(subject, engine=TransformersEngine(model))
            found = ask(changed, subject.requests, arms=asked, parts=in_form())
        facts = {next(iter(asked)): dict(facts)} if facts else {}
        replies |= replace(found, seconds=time.monotonic() - begin, facts=facts)
    order = [label for label in (*arms, ADAPTER) if label in replies.arms]
    return replace(replies, arms={label: replies.arms[label] for label in order})


def stored(subject: Subject) -> StressResult:
    """All linear layers stored in a number format and taken out again."""
    names = subject.pick(("int8", "nf4", "int4"), ("int8", "fp8", "nf4", "int4", "mxfp4"))
    return treated(subject, [storing(name) for name in names])


def storing(name: str) -> Treatment:
    """Stored in a number format."""
    own = FORMATS[name]
    note = f"{own.grid}; rounded to nearest without calibration data; embeddings and output layer as they were."
    return Treatment(name, f"Stored in {name}", lambda model, edit: quantised(model, own), note)


def tuned(subject: Subject) -> StressResult:
    """Short LoRA fine-tunes on written answers to benign requests, of every arm on the same data."""
    rates_and_steps = subject.pick(((1e-4, 16), (5e-4, 16)), ((1e-4, 50), (1e-4, 200), (5e-4, 50), (5e-4, 200)))
    sweep = [FineTune(steps, 4, rate, seed=subject.seed) for rate, steps in rates_and_steps]
    return treated(subject, [tuning(settings) for settings in sweep])


def tuning(settings: FineTune) -> Treatment:
    """A fine-tune; its facts say how much of the edit is still in the weights, and the losses."""

    @contextmanager
    def hold(model: LanguageModel, edit: WeightEdit | None) -> Iterator[Mapping[str, Any]]:
        with fine_tuned(model, helpful_answers(model), settings) as losses:
            few = max(1, len(losses) // 10)
            facts: dict[str, Any] = {"losses": [sum(part) / few for part in (losses[:few], losses[-few:])]}
            yield facts if edit is None else facts | {"edit_left": edit_left(model, edit)}

    note = (
        f"LoRA of rank {settings.rank}, {settings.steps} steps of {settings.batch} replies at "
        f"{settings.learning_rate:g}; one run, whose own chance the interval does not hold."
    )
    name = f"{settings.steps}-steps-at-{settings.learning_rate:g}"
    return Treatment(name, f"Tuned for {settings.steps} steps at {settings.learning_rate:g}", hold, note)
