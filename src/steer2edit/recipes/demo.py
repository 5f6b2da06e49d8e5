"""The demonstration: the whole method on SmolLM2, from contrast set to report, with no search."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steer2edit.artifacts import save_checkpoint, save_edit, save_vectors
from steer2edit.core import Editing, Intervention, Steering, SteeringVectors, WeightEdit
from steer2edit.editing import convert, natural_strength, recommended
from steer2edit.engines import Engine, RememberingEngine, TransformersEngine
from steer2edit.estimates import POINTS, Condition
from steer2edit.evaluation import (
    BASE_ARM,
    DriftTask,
    behaviour,
    calibrate_together,
    described,
    edit_arm,
    evaluate,
    paired_difference,
    steering_arm,
)
from steer2edit.models import LanguageModel
from steer2edit.recipes.making import make_vectors
from steer2edit.recipes.pages import write_run
from steer2edit.recipes.verify import verify_artifacts
from steer2edit.search import PAPER, run_facts
from steer2edit.settings import ExtractOptions
from steer2edit.steering import safety_prompts

Narrate = Callable[[str, Sequence[Condition]], None]
"""(what has just been found, conditions to show side by side; may be empty)."""

RULE = "measured effects with a gate, in closed form: nothing was searched"


@dataclass(frozen=True)
class DemoSettings:
    """How much the demonstration measures.

    Args:
        train_prompts: harmful requests that make the vectors.
        validation_prompts: benign ones, whose drift sets the strengths.
        held_out_prompts: of each kind, for the final figures.
        reply_tokens: longest reply.
        kl: that steering and both edits spend on validation prompts, in nats per token.
        verified_prompts: of each kind, whose replies are compared after reloading.
        seed: of everything random; greedy decoding leaves nothing random, but it is recorded.
    """

    train_prompts: int = 96
    validation_prompts: int = 48
    held_out_prompts: int = 96
    reply_tokens: int = 28
    kl: float = 0.03
    verified_prompts: int = 8
    seed: int = 0


def run_demo(
    model: LanguageModel, out: Path, narrate: Narrate, settings: DemoSettings, command: str = ""
) -> dict[str, Any]:
    """Run the whole demonstration and write vectors, adapter, checkpoint, results and report into `out`.

    Args:
        model: the base model.
        out: an existing, empty directory.
        narrate: is told each finding as it comes.
        settings: how much to measure.
        command: what the user typed, for the record.

    Returns:
        The results, as written to `results.json` (docs/formats.md).
    """
    engine = RememberingEngine(TransformersEngine(model))
    vectors = _extract(model, out, narrate, settings)
    strength, paper, edit = _at_equal_drift(engine, vectors, settings)
    part = behaviour("safety", "held_out", limit=settings.held_out_prompts, max_new_tokens=settings.reply_tokens)
    arms = [BASE_ARM, steering_arm(vectors, strength), edit_arm(paper, "the paper's rule"), edit_arm(edit, "edit")]
    final = evaluate(engine, part.tasks, arms)
    narrate(f"Held-out prompts; steering and both edits spend KL {settings.kl:g} on validation prompts:", final)
    gaps = {name: paired_difference(final[-1].outcomes[name], final[1].outcomes[name]) for name in part.prompts}
    for name, gap in gaps.items():
        narrate(f"Refused by the edit and not by steering, less the reverse, {name}: {POINTS.text(gap, n=True)}.", [])
    card = {"conditions": [c.for_card() for c in final], "metrics": described(final)}
    save_edit(model, edit, out / "edit", evaluation=card)
    save_checkpoint(model, edit, out / "checkpoint")
    prompts = [text for kind in ("harmful", "benign") for text in part.prompts[kind][: settings.verified_prompts]]
    verified = verify_artifacts(model, edit, out / "edit", out / "checkpoint", prompts, settings.reply_tokens)
    counts = {name: f"{one['identical']} of {one['n']}" for name, one in verified.items()}
    narrate(
        "Reloaded in a fresh process with plain transformers and PEFT: identical greedy replies for "
        f"{counts['adapter']} prompts (adapter) and {counts['checkpoint']} (checkpoint).",
        [],
    )
    results = {
        **run_facts(
            f"steer2edit demo: refusing harmful requests, {model.name}", part, model, command, asdict(settings)
        ),
        "diagnosis": vectors.diagnosis,
        "held_out": {"conditions": [c.to_json() for c in final]},
        "edit_minus_steering": {name: gap.to_json() for name, gap in gaps.items()},
        "prompts": part.prompts,
        "chosen": {
            "hyperparameters": edit.metadata["hyperparameters"],
            "steering_strength": strength,
            "rule": RULE,
        },
        "verification": verified,
    }
    write_run(results, edit, out)
    return results


def _extract(model: LanguageModel, out: Path, narrate: Narrate, settings: DemoSettings) -> SteeringVectors:
    options = ExtractOptions(
        "safety", limit=settings.train_prompts, max_new_tokens=settings.reply_tokens, seed=settings.seed, effects=True
    )
    vectors = make_vectors(model, options)
    save_vectors(vectors, out / "vectors.safetensors")
    diagnosis = vectors.diagnosis or {}
    counts = diagnosis["counts"]["train"]
    narrate(
        f"Steering vectors from {counts['positive']} refusals and {counts['negative']} replies of the model's own to "
        f"harmful requests. {diagnosis['summary']}",
        [],
    )
    return vectors


def _at_equal_drift(
    engine: Engine, vectors: SteeringVectors, settings: DemoSettings
) -> tuple[float, WeightEdit, WeightEdit]:
    """The strength of steering, the paper's edit and the recommended one, which all spend the same drift."""
    recipe = recommended(vectors)
    assert recipe is not None
    rules, budget = recipe
    paper, edit = convert(engine.model, vectors, PAPER), convert(engine.model, vectors, budget, rules)
    task = DriftTask(safety_prompts("validation")[1][: settings.validation_prompts])
    ways: list[tuple[Callable[[float], Intervention], float]] = [
        (lambda s: Steering(vectors, s), 0.1),
        (lambda s: Editing(paper, s), 0.7),
        (lambda s: Editing(edit, s), natural_strength(edit) or 1.0),
    ]
    found = [one.strength for one in calibrate_together(engine, ways, task, settings.kl)]
    return round(found[0], 4), paper.scaled(found[1]), edit.scaled(found[2])
