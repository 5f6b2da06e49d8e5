"""Methods against each other: the curve of each over its strength, calibrated on validation items, held out once."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steer2edit.artifacts.run_folder import RunFolder, RunKind
from steer2edit.core import Editing, Intervention, Steering, SteeringVectors, WeightEdit
from steer2edit.editing import ablation, compute_factors, natural_strength, rosi
from steer2edit.engines import Engine
from steer2edit.errors import InvalidValueError, MismatchError, NoiseError
from steer2edit.estimates import Condition, ConditionKind
from steer2edit.evaluation import BASE_ARM, COST, Arm, Behaviour, calibrate, evaluate, metric_name
from steer2edit.method.hyperparameters import EVERYTHING, GATED_RULES, PAPER_RULES, Hyperparameters, Rules
from steer2edit.method.rule import output_direction
from steer2edit.models import LanguageModel
from steer2edit.progress import step
from steer2edit.search.curves import Figure, Plan, figure_text, method_figures
from steer2edit.search.run import Narrate, run_facts
from steer2edit.search.search import behaviours_of, options_for, require_apart, utility_metric
from steer2edit.settings import ComparisonOptions

STEERING = "steering"
PAPER = Hyperparameters(rho_attn=0.15, rho_mlp=None, alpha=0.5)
"""The paper's rule for attention; no setting that was tried does better on SmolLM2's validation items."""
_NATURAL = 0.2
_ROSI_SIZE = 1.0  # of the whole row


@dataclass(frozen=True)
class Method:
    """A way to move a behaviour."""

    kind: ConditionKind  # steering or edit
    at: Callable[[float], Intervention]  # the intervention at a strength > 0
    first: float  # a strength that drifts little, but at all
    identity: str  # what makes it this method


def comparison_methods(
    model: LanguageModel,
    vectors: SteeringVectors,
    edits: Mapping[str, WeightEdit],
    *,
    suppress: bool = False,
    allow_mismatch: bool = False,
) -> tuple[dict[str, Method], dict[str, str]]:
    """Steering, edits of the vectors, baselines and given edits by name; and those left out, with the reason.

    With `suppress` the behaviour is taken away: negative strengths, and directional ablation besides.
    """
    sign, left_out = -1 if suppress else 1, {}
    directions = {site: output_direction(means.steering_vector) for site, means in vectors.sites.items()}
    recipes = {"paper": (PAPER_RULES, PAPER)}
    if vectors.has_effects:
        recipes |= {"effects": (Rules(importance="effect"), EVERYTHING), "gated": (GATED_RULES, EVERYTHING)}
    else:
        left_out["effects"] = "the vectors have no measured effects: extract them with --effects"
    methods = {STEERING: Method("steering", lambda s: Steering(vectors, sign * s), 0.05, vectors.digest())}
    factors = compute_factors(model, vectors, PAPER_RULES, allow_mismatch=allow_mismatch)
    for name, (rules, hyperparameters) in recipes.items():
        try:
            known = factors if rules == PAPER_RULES else compute_factors(model, vectors, rules, allow_mismatch=True)
            methods[name] = _editing(known.edit(hyperparameters), sign)
        except (InvalidValueError, MismatchError, NoiseError) as error:  # nothing to edit, or not in those blocks
            left_out[name] = str(error)
    methods["rosi"] = _editing(rosi(model, directions), sign, _ROSI_SIZE)
    if shared := sorted({"ablation", *methods, *left_out} & edits.keys()):
        raise InvalidValueError(f"an edit is called {shared[0]!r}, as a method is: rename its directory.")
    for name, edit in edits.items():
        model.require_fit(edit, allow_mismatch=allow_mismatch)
        methods[name] = _editing(edit, sign)
    if suppress:
        methods["ablation"] = _editing(ablation(model, directions), 1)
    return methods, left_out


def _editing(edit: WeightEdit, sign: int, size: float | None = None) -> Method:
    """An edit from a strength on that is natural to it, or at which the norm of its whole row is a given one."""
    norm = sum(e.row.double().square().sum().item() for e in edit.sites.values()) ** 0.5
    if norm == 0:
        raise InvalidValueError("an edit is zero everywhere, so it has no curve.")
    first = size / norm if size is not None else natural_strength(edit) or _NATURAL
    return Method("edit", lambda s: Editing(edit, sign * s), first, edit.digest())


COMPARISON = "comparison"
_KIND = RunKind(COMPARISON, 1, "comparing", "model, vectors, edits and options")
_BEYOND = 1.25  # the last strength spends so much more than the largest KL: a curve must reach where it is read
_MOST_STEPS = 14
_TOLERANCE = 0.15  # relative, of a drift: curves are read at the drifts of held-out items, between points
_CALIBRATED_ON = 48  # validation requests


def run_comparison(
    engine: Engine,
    vectors: SteeringVectors,
    methods: Mapping[str, Method],
    options: ComparisonOptions,
    out: Path,
    narrate: Narrate,
    *,
    left_out: Mapping[str, str] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Compare methods in the run folder `out`, going on where an earlier call was stopped: its `results.json`."""
    options = options_for(vectors, options)
    validation, held_out = behaviours_of(options)
    require_apart(vectors, validation, held_out)
    identity = _identity(engine, vectors, options, (validation, held_out))
    with RunFolder(out, _KIND).opened(identity) as folder:
        narrate("Finding the strengths that spend each KL on validation items.", [])
        arms = _arms(engine, methods, options, validation, folder)
        base, found = _measured(engine, held_out, arms, folder)
    for name, conditions in found.items():
        narrate(f"{name}, on held-out items:", [base, *conditions])
    plan = _plan(options, held_out)
    items = {  # by metric, the prompts that it is measured on: metrics of the same prompts are resampled together
        name: tuple(str(p) for prompts in task.asked.values() for p in prompts)  # type: ignore[attr-defined]
        for task in held_out.tasks
        for name in task.metric_names  # type: ignore[attr-defined]
    }
    figures = method_figures(base, found, plan, items, seed=options.seed)
    title = f"Methods compared, {held_out.name} on {engine.model.name}"
    return {
        **run_facts(title, held_out, engine.model, command, asdict(options)),
        "kind": COMPARISON,
        "plan": asdict(plan),
        "left_out": dict(left_out or {}),
        "base": base.to_json(),
        "methods": {name: [c.to_json() for c in conditions] for name, conditions in found.items()},
        "figures": {name: {key: asdict(f) for key, f in own.items()} for name, own in figures.items()},
        "prompts": held_out.prompts,
        "summary": _summary(figures, plan),
    }


def _plan(options: ComparisonOptions, measured: Behaviour) -> Plan:
    """What is computed: the behaviour's own costs where it is wanted, else accuracy or the loss on answers."""
    own = {} if options.suppress else measured.costs
    accuracy = utility_metric(measured)
    second = [*(own or ([] if accuracy else ["nll_increase"])), *([accuracy] if accuracy else [])]
    falling = [*(metric for metric, way in own.items() if way == "fall"), *([accuracy] if accuracy else [])]
    direction = -measured.direction if options.suppress else measured.direction
    reach = None if options.suppress else measured.reach
    return Plan(measured.attribute, direction, options.kls, tuple(second), reach, tuple(falling))


def _identity(
    engine: Engine, vectors: SteeringVectors, options: ComparisonOptions, parts: tuple[Behaviour, Behaviour]
) -> dict[str, Any]:
    """What makes a comparison this one; methods and drifts may join later."""
    validation, held_out = parts
    return {
        **engine.model.identity(),
        "vectors": vectors.digest(),
        "behaviour": options.behaviour,
        "suppress": options.suppress,
        "items": {"validation": validation.digest(), "held_out": held_out.digest()},
    }


def _arms(
    engine: Engine, methods: Mapping[str, Method], options: ComparisonOptions, validation: Behaviour, folder: RunFolder
) -> dict[str, list[Arm]]:
    """Every method at the strengths that spend the targets on validation items; a strength is found once."""
    arms: dict[str, list[Arm]] = {name: [] for name in methods}
    firsts = {name: method.first for name, method in methods.items()}
    task = validation.drift.part(slice(_CALIBRATED_ON))
    targets = (*options.kls[:-1], _BEYOND * options.kls[-1])
    with step("Calibrating", len(targets)) as advance:
        for target in targets:
            # with what makes a method this one: another edit of the same name is another method
            keys = {f"{name} at KL {target:g}, {m.identity[:16]}": name for name, m in methods.items()}

            def find(missing: list[str], target: float = target, keys: dict[str, str] = keys) -> list[dict[str, Any]]:
                wanted = [(methods[keys[key]].at, firsts[keys[key]]) for key in missing]
                how = {"tolerance": _TOLERANCE, "most_steps": _MOST_STEPS}
                return [asdict(one) for one in calibrate(engine, wanted, task, target, **how)]  # type: ignore[arg-type]

            found = folder.once_each("calibrated", list(keys), find)
            advance(1)
            for (key, name), one in zip(keys.items(), found, strict=True):
                strength, method = float(one["strength"]), methods[name]
                if arms[name] and strength <= arms[name][-1].parameters["strength"]:
                    continue  # it spends no more than it did already
                facts = {"target_kl": target, "strength": strength, "validation_kl": one["drift"], "key": key}
                arms[name].append(Arm(method.kind, f"{name} {strength:.3g}", method.at(strength), facts))
                firsts[name] = 1.5 * strength
    return arms


def _measured(
    engine: Engine, held_out: Behaviour, arms: Mapping[str, Sequence[Arm]], folder: RunFolder
) -> tuple[Condition, dict[str, list[Condition]]]:
    with step("Measuring held-out items", 1 + sum(map(len, arms.values()))) as advance:

        def once(arm: Arm) -> Condition:
            key = arm.parameters.get("key", arm.label)
            (found,) = folder.conditions("held_out", key, lambda: evaluate(engine, held_out.tasks, [arm]))
            advance(1)
            return found

        base = once(BASE_ARM)
        return base, {name: [once(arm) for arm in own] for name, own in arms.items()}


def _summary(figures: Mapping[str, Mapping[str, Figure]], plan: Plan) -> list[str]:
    """In plain sentences: the method with the largest area below its curve, against steering."""
    area = f"area {COST}"
    best = max((name for name in figures if name != STEERING), key=lambda name: figures[name][area].value.value or 0.0)
    kl = f"at kl {(plan.kls[-2:-1] or plan.kls)[0]:g}"
    own, steered = figures[best], figures[STEERING]
    lines = {
        kl: f"{metric_name(plan.attribute).brief} {own[kl].label}: {best} "
        f"{figure_text(own[kl].value, own[kl].share)}, steering {figure_text(steered[kl].value, own[kl].share)}, "
        f"difference {figure_text(own[kl].against_steering, own[kl].share, sign=True)}"
    }
    for key in (area, *(f"area {metric}" for metric in plan.second[:1])):
        lines[key] = f"{best}, {own[key].label}, by steering's: {figure_text(own[key].against_steering, False)}"
    for key in lines:
        found, none = own[key].against_steering, 0.0 if own[key].relation == "difference" else 1.0
        open_ = found.value is not None and found.low is not None
        within = open_ and found.low <= none <= (math.inf if found.high is None else found.high)  # type: ignore[operator]
        lines[key] += ": no detectable difference." if within else "."
    return list(lines.values())
