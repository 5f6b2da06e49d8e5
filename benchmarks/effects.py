"""Not speed: that an edit of measured effects adds to the attribute what its effects say.

The physics. Effects are derivatives: along the edit, the log-probability of a refusal's first tokens rises by Σ λ_i
per unit of strength, to first order. How much that buys against other methods, and what it costs: `steer2edit compare`.

Verified: the slope in the weights, by a central difference, is the promised one to 10 %.
"""

from typing import Annotated

import typer
from timing import emit

from steer2edit.core import SteeringVectors
from steer2edit.editing import compute_factors, merged
from steer2edit.method.hyperparameters import Hyperparameters, Rules
from steer2edit.models import LanguageModel, encode_responses, load_model
from steer2edit.models.generation import span_log_probabilities, token_log_probabilities
from steer2edit.steering.contrast import ContrastSet, load_contrast
from steer2edit.steering.effects import DECIDING_TOKENS, measure_effects
from steer2edit.steering.extract import extract

STEP = 0.02  # nats that the effects promise on either side


def slopes(model: LanguageModel, vectors: SteeringVectors, contrast: ContrastSet) -> tuple[float, float]:
    """(Σ λ_i, the slope of the attribute along the edit in the weights)."""
    edit = compute_factors(model, vectors, Rules(importance="effect")).edit(Hyperparameters(1.0, 1.0, 0.0))
    promised = sum(magnitude for _, magnitude, _ in edit.components())

    def attribute() -> float:
        means = []
        for pairs in (contrast.train.positive, contrast.train.negative):
            found = []
            for response in encode_responses(model, pairs):
                (distributions,) = span_log_probabilities(model, [response])
                found.append(float(token_log_probabilities(distributions, response)[:DECIDING_TOKENS].sum()))
            means.append(sum(found) / len(found))
        return means[0] - means[1]

    step = STEP / promised
    with merged(model, edit, step):
        above = attribute()
    with merged(model, edit, -step):
        below = attribute()
    return promised, (above - below) / (2 * step)


def main(
    model: Annotated[str, typer.Option(help="A Hub id, a directory, or smollm2.")] = "smollm2",
    limit: Annotated[int | None, typer.Option(help="Use at most so many training requests.")] = None,
) -> None:
    """Compare the slope that effects promise with that of the edited weights."""
    exact = load_model(model, dtype="float32")
    contrast = load_contrast("safety", exact, limit=limit)
    promised, slope = slopes(exact, measure_effects(exact, extract(exact, contrast), contrast), contrast)
    if abs(slope / promised - 1) > 0.1:
        raise SystemExit(f"WRONG: the effects promise {promised:.4g}, the weights give {slope:.4g}.")
    emit("effects", model=model, promised=promised, slope=slope, ratio=slope / promised)


if __name__ == "__main__":
    typer.run(main)
