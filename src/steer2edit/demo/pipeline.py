"""extract → steer → convert → persist, on held-out prompts, with everything written to one folder."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steer2edit.artifacts import package_versions, save_checkpoint, save_edit, save_vectors
from steer2edit.core import SteeringVectors, WeightEdit
from steer2edit.demo.choose import LIMITS, RULE, Trial, choose, run_trials, strength_at
from steer2edit.demo.verify import verify_artifacts
from steer2edit.editing import compute_factors
from steer2edit.engines import TransformersEngine
from steer2edit.estimates import POINTS, SCHEMA_VERSION, Condition, Estimate
from steer2edit.evaluation import (
    BASE_ARM,
    METRICS,
    Behaviour,
    behaviour,
    edit_arm,
    evaluate,
    paired_difference,
    steering_arm,
)
from steer2edit.models import LanguageModel, Sampling
from steer2edit.report import write_report
from steer2edit.search import Budget
from steer2edit.steering import extract, load_contrast

Narrate = Callable[[str, Sequence[Condition]], None]
"""(what has just been found, conditions to show side by side; may be empty)."""


@dataclass(frozen=True)
class DemoSettings:
    """How much the demonstration measures.

    Args:
        train_prompts: harmful requests that make the vectors.
        validation_prompts: of each kind, to choose on.
        held_out_prompts: of each kind, for the final figures.
        reply_tokens: longest reply.
        strengths: of activation steering.
        verified_prompts: of each kind, whose replies are compared after reloading.
        seed: of everything random; greedy decoding leaves nothing random, but it is recorded.
    """

    train_prompts: int = 96
    validation_prompts: int = 48
    held_out_prompts: int = 96
    reply_tokens: int = 28
    strengths: tuple[float, ...] = (0.1, 0.2, 0.3)
    verified_prompts: int = 8
    seed: int = 0


def run_demo(model: LanguageModel, out: Path, narrate: Narrate, settings: DemoSettings) -> dict[str, Any]:
    """Run the whole demonstration and write vectors, adapter, checkpoint, results and report into `out`.

    Args:
        model: the base model.
        out: an existing, empty directory.
        narrate: is told each finding as it comes.
        settings: how much to measure.

    Returns:
        The results, as written to `results.json` (docs/formats.md).
    """
    engine = TransformersEngine(model)
    vectors = _extract(model, out, narrate, settings)
    steering, trials, chosen = _validate(engine, vectors, narrate, settings)
    damage = chosen.condition.value("nll_increase")
    strength = strength_at(damage if damage is not None else 0.0, steering[1:])
    edit = compute_factors(model, vectors).edit(chosen.hyperparameters)
    held_out, final = _held_out(engine, vectors, edit, chosen, strength, narrate, settings)
    beyond = Budget(LIMITS).broken(final[2].metrics)
    narrate(beyond or "The edit keeps its limits on held-out prompts.", [])
    verification = _persist(model, edit, final, beyond, held_out, out, narrate, settings)
    results = {
        "schema_version": SCHEMA_VERSION,
        "title": f"steer2edit demo: refusing harmful requests, {model.name}",
        "behaviour": "safety",
        "model": model.describe(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": package_versions(),
        "command": " ".join(["steer2edit", *sys.argv[1:]]),
        "settings": asdict(settings),
        "diagnosis": vectors.diagnosis,
        "validation": {"conditions": [c.to_json() for c in (*steering, *(t.condition for t in trials))]},
        "held_out": {"conditions": [c.to_json() for c in final]},
        "edit_minus_steering": {name: difference(final[2], final[1], name).to_json() for name in held_out.prompts},
        "prompts": held_out.prompts,
        "chosen": {
            "hyperparameters": chosen.hyperparameters.to_json(),
            "steering_strength": strength,
            "rule": RULE,
            "limits": dict(LIMITS),
        },
        "verification": verification,
        "beyond_budget": beyond,
    }
    (out / "results.json").write_text(
        json.dumps(results, indent=2, ensure_ascii=False), encoding="utf-8", errors="backslashreplace"
    )
    write_report(results, edit, out / "report.html")
    return results


def _extract(model: LanguageModel, out: Path, narrate: Narrate, settings: DemoSettings) -> SteeringVectors:
    contrast = load_contrast(
        "safety",
        model,
        limit=settings.train_prompts,
        sampling=Sampling(max_new_tokens=settings.reply_tokens),
        seed=settings.seed,
    )
    vectors = extract(model, contrast)
    save_vectors(vectors, out / "vectors.safetensors")
    counts = contrast.train.counts()
    assert vectors.diagnosis is not None
    narrate(
        f"Steering vectors from {counts['positive']} refusals and {counts['negative']} replies of the model's own to "
        f"harmful requests. {vectors.diagnosis['summary']}",
        [],
    )
    return vectors


def _validate(
    engine: TransformersEngine, vectors: SteeringVectors, narrate: Narrate, settings: DemoSettings
) -> tuple[list[Condition], list[Trial], Trial]:
    """The dose–response of steering, and the edit chosen among candidates, on validation prompts."""
    part = _behaviour("validation", settings.validation_prompts, settings)
    arms = [BASE_ARM, *(steering_arm(vectors, strength) for strength in settings.strengths)]
    steering = evaluate(engine, part.tasks, arms)
    narrate("Base model and activation steering, on validation prompts:", steering)
    trials = run_trials(engine, compute_factors(engine.model, vectors), part)
    measured = [trial.condition for trial in trials if part.attribute in trial.condition.metrics]
    narrate(f"Edits whose damage is within the limit, {len(measured)} of {len(trials)} tried:", measured)
    chosen = choose(trials)
    narrate(f"Chosen: {chosen.condition.label}: {RULE}.", [])
    return steering, trials, chosen


def _behaviour(split: str, limit: int, settings: DemoSettings) -> Behaviour:
    return behaviour("safety", split, limit=limit, max_new_tokens=settings.reply_tokens)  # type: ignore[arg-type]


def _held_out(
    engine: TransformersEngine,
    vectors: SteeringVectors,
    edit: WeightEdit,
    chosen: Trial,
    strength: float,
    narrate: Narrate,
    settings: DemoSettings,
) -> tuple[Behaviour, list[Condition]]:
    """Base, steered at the edit's damage, and edited, on prompts that nothing was chosen on."""
    part = _behaviour("held_out", settings.held_out_prompts, settings)
    arms = [BASE_ARM, steering_arm(vectors, strength), edit_arm(edit, chosen.condition.label)]
    final = evaluate(engine, part.tasks, arms)
    narrate("Held-out prompts, steering at the strength that did the same damage on validation prompts:", final)
    for name in part.prompts:
        gap = difference(final[2], final[1], name)
        narrate(f"Refused by the edit and not by steering, less the reverse, {name}: {POINTS.text(gap, n=True)}.", [])
    return part, final


def difference(after: Condition, before: Condition, name: str) -> Estimate:
    """Paired difference of two conditions' refusal rates on one set of prompts."""
    return paired_difference(after.outcomes[name], before.outcomes[name])


def _persist(
    model: LanguageModel,
    edit: WeightEdit,
    final: list[Condition],
    beyond_budget: str,
    part: Behaviour,
    out: Path,
    narrate: Narrate,
    settings: DemoSettings,
) -> dict[str, dict[str, int]]:
    evaluation = {
        "conditions": [condition.for_card() for condition in final],
        "metrics": METRICS,
        "beyond_budget": beyond_budget,
    }
    save_edit(model, edit, out / "edit", evaluation=evaluation)
    save_checkpoint(model, edit, out / "checkpoint")
    prompts = part.prompts["harmful"][: settings.verified_prompts] + part.prompts["benign"][: settings.verified_prompts]
    found = verify_artifacts(model, edit, out / "edit", out / "checkpoint", prompts, settings.reply_tokens)
    counts = {name: f"{one['identical']} of {one['n']}" for name, one in found.items()}
    narrate(
        "Reloaded in a fresh process with plain transformers and PEFT: identical greedy replies for "
        f"{counts['adapter']} prompts (adapter) and {counts['checkpoint']} (checkpoint).",
        [],
    )
    return found
