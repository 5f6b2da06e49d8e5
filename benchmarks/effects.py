"""Not speed: an edit made of measured effects, the paper's attention edit, and activation steering, at equal drift.

The physics. KL(base ‖ edited) grows with the square of a strength, the log-odds of a refusal with the strength itself,
until a reply tips over. So a method is compared by what it refuses at a given KL, and by what else it refuses then:
benign requests, and safe ones that sound alarming. KL does not see those, since refusals are rare words. The paper
weighs a component by a cosine and takes all for equally dear; effects weigh what it adds to a refusal's first tokens,
measured, against what it costs, measured.

Requests: `requests/`, which no choice was made on, or files of one's own; drift is calibrated on the built-in
validation requests and reported on the benign ones here.

Verified: along the edit, the log-probability of a refusal's first tokens rises as its effects say, to 10 %.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from timing import emit, say

from steer2edit.core import Editing, Intervention, Steering, SteeringVectors
from steer2edit.editing import compute_factors, merged
from steer2edit.engines import RememberingEngine, TransformersEngine
from steer2edit.evaluation import DriftTask, RefusalTask, calibrate
from steer2edit.method import Hyperparameters, Rules
from steer2edit.models import LanguageModel, encode_responses, load_model
from steer2edit.models.scoring import span_log_probabilities, token_log_probabilities
from steer2edit.steering import extract, load_contrast, measure_effects, read_examples, safety_prompts
from steer2edit.steering.contrast import ContrastSet
from steer2edit.steering.effects import DECIDING_TOKENS

SETS = ("harmful", "benign", "borderline")
FIRST_STEP = 1e-3  # nats that the effects promise at the step where they are verified


def requests(name: str, file: Path | None, limit: int | None) -> list[Any]:
    """The held-out requests of a set, or all of a file's."""
    rows = read_examples(file or Path(__file__).parent / f"requests/{name}.jsonl")
    return [row.prompt for row in rows if file or row.split == "held_out"][:limit]


def verify(model: LanguageModel, vectors: SteeringVectors, contrast: ContrastSet) -> None:
    """The slope of the attribute along the edit, in the weights, against Σ λ_i g_i."""
    edit = compute_factors(model, vectors, Rules(importance="effect")).edit(Hyperparameters(1.0, 1.0, 0.0))
    promised = sum(magnitude * gain for _, magnitude, gain in edit.components())

    def attribute() -> float:
        means = []
        for pairs in (contrast.train.positive, contrast.train.negative):
            responses = encode_responses(model, pairs)
            found = []
            for response in responses:
                (distributions,) = span_log_probabilities(model, [response])
                found.append(float(token_log_probabilities(distributions, response)[:DECIDING_TOKENS].sum()))
            means.append(sum(found) / len(found))
        return means[0] - means[1]

    step = 20 * FIRST_STEP / promised
    with merged(model, edit, step):
        above = attribute()
    with merged(model, edit, -step):
        below = attribute()
    slope = (above - below) / (2 * step)
    if abs(slope / promised - 1) > 0.1:
        raise SystemExit(f"WRONG: the effects promise {promised:.4g}, the weights give {slope:.4g}.")


def main(
    model: Annotated[str, typer.Option(help="A Hub id, a directory, or smollm2.")] = "smollm2",
    kl: Annotated[list[float], typer.Option(help="Drifts to compare at.")] = [0.01, 0.03, 0.1],  # noqa: B006
    limit: Annotated[int | None, typer.Option(help="Use at most so many requests of every set.")] = None,
    harmful: Annotated[Path | None, typer.Option(help="A file of requests instead.")] = None,
    benign: Annotated[Path | None, typer.Option(help="A file of requests instead.")] = None,
    borderline: Annotated[Path | None, typer.Option(help="A file of requests instead.")] = None,
) -> None:
    """Compare what is refused at equal drift."""
    exact = load_model(model, dtype="float32")
    contrast = load_contrast("safety", exact, limit=limit)
    verify(exact, measure_effects(exact, extract(exact, contrast), contrast), contrast)
    del exact
    loaded = load_model(model)
    contrast = load_contrast("safety", loaded, limit=limit)
    vectors = measure_effects(loaded, extract(loaded, contrast), contrast)
    effects = compute_factors(loaded, vectors, Rules(importance="effect")).edit(Hyperparameters(1.0, 1.0, 0.0))
    paper = compute_factors(loaded, vectors).edit(Hyperparameters(0.15, None, 0.5, max_shift=0.4))
    norm = float(torch.stack([edit.row.square().sum() for edit in effects.sites.values()]).sum().sqrt())
    arms: dict[str, tuple[Callable[[float], Intervention], float]] = {
        "effects": (lambda s: Editing(effects, s), 0.01 / norm),
        "paper": (lambda s: Editing(paper, s), 0.3),
        "steering": (lambda s: Steering(vectors, s), 0.05),
    }
    engine = RememberingEngine(TransformersEngine(loaded))
    files = dict(zip(SETS, (harmful, benign, borderline), strict=True))
    found = {name: requests(name, file, limit) for name, file in files.items()}
    tasks = [*(RefusalTask(name, prompts) for name, prompts in found.items()), DriftTask(found["benign"])]
    calibration = DriftTask(safety_prompts("validation")[1][:limit])
    results = []
    for name, (at, first) in arms.items():
        for target in kl:
            reached = calibrate(engine, at, calibration, target, first=first, most_steps=14)
            first = 1.5 * reached.strength
            metrics = {}
            for task in tasks:
                metrics |= task.measure(engine, [at(reached.strength)])[0].metrics
            row = {key: [m.value, m.low, m.high, m.n] for key, m in metrics.items()}
            say(f"{name} at KL {target:g}: {json.dumps(row)}")
            results.append({"method": name, "target_kl": target, "strength": reached.strength, **row})
    emit("effects", model=model, requests={name: len(prompts) for name, prompts in found.items()}, results=results)


if __name__ == "__main__":
    typer.run(main)
