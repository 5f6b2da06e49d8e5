"""Not speed: what an edit buys of a behaviour, against activation steering that drifts as much.

The physics. Steering and edits move a model along the same vectors; what either may cost is drift, so all are scaled to
one KL on benign validation requests and measured once on held-out items, paired. Arms: steering, the paper's attention
edit (rho .15, alpha .5), and with --effects the recommended edit of measured effects. `steer2edit compare` has curves.

Verified: every arm spends the KL to 10 % on the requests that it was scaled on.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from timing import emit

from steer2edit.artifacts import load_vectors, save_vectors
from steer2edit.core import Editing, Intervention, Steering
from steer2edit.editing import convert, natural_strength
from steer2edit.engines import RememberingEngine, TransformersEngine
from steer2edit.estimates import Condition
from steer2edit.evaluation import BASE_ARM, DriftTask, behaviour, calibrate, edit_arm, evaluate, steering_arm
from steer2edit.evaluation.statistics import estimate, paired
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import load_model
from steer2edit.recipes.making import rules_of
from steer2edit.settings import ConvertOptions
from steer2edit.steering.contrast import load_contrast
from steer2edit.steering.effects import measure_effects
from steer2edit.steering.extract import extract
from steer2edit.steering.presets import safety_prompts

PAPER = Hyperparameters(0.15, None, 0.5)


def main(
    name: Annotated[str, typer.Argument(help="A behaviour, its folder, or a contrast file.")],
    vectors: Annotated[Path, typer.Option(help="Kept there, with what was measured beside: a second call goes on.")],
    model: Annotated[str, typer.Option(help="A Hub id, a directory, or smollm2.")] = "smollm2",
    kl: Annotated[float, typer.Option(help="Drift that every arm spends, nats per token.")] = 0.03,
    train: Annotated[int | None, typer.Option(help="Use at most so many training requests.")] = None,
    limit: Annotated[int, typer.Option(help="Use at most so many held-out items of every set.")] = 60,
    calibration: Annotated[int, typer.Option(help="Benign requests that arms are scaled on.")] = 24,
    chat_template: Annotated[str | None, typer.Option(help="Jinja file, for a model that has none.")] = None,
    effects: Annotated[bool, typer.Option("--effects", help="Measure effects, for an edit of these too.")] = False,
) -> None:
    """Measure base, steering and edits of one behaviour at one drift."""
    loaded = load_model(model, chat_template=chat_template)
    if not vectors.exists():
        contrast = load_contrast(name, loaded, limit=train)
        fresh = extract(loaded, contrast)
        save_vectors(measure_effects(loaded, fresh, contrast) if effects else fresh, vectors)
    made = load_vectors(vectors)
    engine = RememberingEngine(TransformersEngine(loaded))
    task = DriftTask("", safety_prompts("validation")[1][:calibration])
    edits = {"paper": convert(loaded, made, PAPER, force=True)}
    if effects:
        rules, own = rules_of(ConvertOptions(), made)
        edits["effects"] = convert(loaded, made, own, rules, force=True)
    store = vectors.with_suffix(f".{kl:g}.json")
    known: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}

    def once(key: str, make: Callable[[], Any]) -> Any:
        if key not in known:
            known[key] = make()
            store.write_text(json.dumps(known))
        return known[key]

    def strength(at: Callable[[float], Intervention], first: float) -> float:
        (found,) = calibrate(engine, [(at, first)], task, kl, tolerance=0.1, most_steps=16)
        if not found.reached:
            raise SystemExit(f"WRONG: KL {found.drift:.3g} was spent, not {kl}.")
        return found.strength

    spent = {"steering": once("steering", lambda: strength(lambda s: Steering(made, s), 0.2))}
    for key, edit in edits.items():
        spent[key] = once(key, partial(strength, partial(Editing, edit), natural_strength(edit) or 0.3))
    arms = {"base": BASE_ARM, "steering": steering_arm(made, spent["steering"])}
    arms |= {key: edit_arm(edit, "edit", spent[key]) for key, edit in edits.items()}
    part = behaviour(name, "held_out", limit=limit)
    found = {
        key: Condition.from_json(
            once(f"{key}, {limit}", lambda arm=arm: evaluate(engine, part.tasks, [arm])[0].to_json())
        )
        for key, arm in arms.items()
    }
    emit(
        "equal_drift", behaviour=part.name, model=model, kl=kl, attribute=part.attribute, direction=part.direction,
        strengths=spent,
        figures={key: {n: estimate(v).to_json() for n, v in c.values.items()} for key, c in found.items()},
        less_steering={
            key: {n: paired(found[key].values[n], found["steering"].values[n]).to_json() for n in found[key].values}
            for key in edits
        },
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
