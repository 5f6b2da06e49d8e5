"""Conversion: how long do all 125 configurations of the paper's coarse grid take?

The physics. A site's u, k and g depend on its weight, its steering vector and its input mean, not on (ρ, α). They
cost one pass over the weights of the projections (SmolLM2: 36 M numbers) and are computed once. A configuration
then is λ, closed form in g, and the row a = concat_i(λ_i k_i): Σ_sites m = 63,360 numbers for SmolLM2. All 125 are
8 M numbers, 32 MB in float32, of one elementwise product per site (and only 25 of them differ at any one site,
which has one ρ of its own). So the grid should cost a few conversions, not 125, each of which would read all the
weights again. The aim is under 2 s for all of them, after loading.

Arms, in turn: `grid` (`compute_factors` once, `Factors.edits` of the whole grid) and `single` (`convert` of one
configuration). Loading and extraction are outside both. A model's first conversion also computes its fingerprint;
that run is reported apart, as `first_seconds`.

Verified: edits of the grid equal, bit for bit, the same configurations converted alone; λ of every component of
one of them equals Theorem 3.3 worked out in plain Python from its g; and its part of the row has length |λ|.
"""

import time
from typing import Annotated

import torch
import typer
from timing import emit, in_turn, paired_ratio, say, spread

from steer2edit.core import SteeringVectors, WeightEdit
from steer2edit.editing import compute_factors, convert
from steer2edit.method.hyperparameters import Hyperparameters, grid
from steer2edit.models import LanguageModel, load_model
from steer2edit.steering.contrast import load_contrast
from steer2edit.steering.extract import extract

AIM_SECONDS = 2.0
TOLERANCE = 1e-5
COMPARED = (0, 36, 124)  # of the grid; the second (.3, .5, .3) has no exact binary arithmetic


def convert_grid(model: LanguageModel, vectors: SteeringVectors) -> list[WeightEdit]:
    return compute_factors(model, vectors).edits(grid())


def require_same(one: WeightEdit, other: WeightEdit) -> None:
    fields = ("output_direction", "row", "magnitude", "importance")
    same = one.sites.keys() == other.sites.keys() and all(
        torch.equal(getattr(one.sites[site], field), getattr(other.sites[site], field))
        for site in one.sites
        for field in fields
    )
    if not same or one.metadata != other.metadata:
        raise SystemExit(f"WRONG: {one.metadata['hyperparameters']} of the grid differs from its conversion alone.")


def require_closed_form(edit: WeightEdit, chosen: Hyperparameters) -> float:
    """Largest difference of λ from sign(g) max(|g| − ρα, 0) / (ρ(1 − α)), and of ‖a_i‖ from |λ_i|."""
    worst = 0.0
    for site, site_edit in edit.sites.items():
        rho = chosen.rho(site.block)
        assert rho is not None
        for g, lam in zip(site_edit.importance.tolist(), site_edit.magnitude.tolist(), strict=True):
            expected = max(abs(g) - rho * chosen.alpha, 0.0) / (rho * (1 - chosen.alpha))
            worst = max(worst, abs(lam - (expected if g > 0 else -expected)))
        lengths = site_edit.row.view(-1, site_edit.component_width).norm(dim=1)
        worst = max(worst, float((lengths - site_edit.magnitude.abs()).abs().max()))
    if not worst <= TOLERANCE:
        raise SystemExit(f"WRONG: λ of {chosen} differs from Theorem 3.3 by {worst}, not ≤ {TOLERANCE}.")
    return worst


def verify(model: LanguageModel, vectors: SteeringVectors, edits: list[WeightEdit]) -> dict[str, object]:
    configurations = grid()
    for index in COMPARED:
        require_same(edits[index], convert(model, vectors, configurations[index]))
    worst = require_closed_form(edits[COMPARED[1]], configurations[COMPARED[1]])
    edited = len(list(edits[COMPARED[1]].components()))
    return {
        "equal_to_converting_alone": [configurations[i].to_json() for i in COMPARED],
        "closed_form_largest_difference": worst,
        "components_edited_by_second": edited,
    }


def main(
    model: str = "smollm2",
    device: str = "auto",
    rounds: Annotated[int, typer.Option(min=5, help="Measured rounds, after one to warm up.")] = 5,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of the contrast the vectors come from.")] = 8,
) -> None:
    say("loading, and extracting vectors from a small contrast")
    loaded = load_model(model, device=device)
    vectors = extract(loaded, load_contrast("truthfulness", loaded, limit=prompts))
    start = time.perf_counter()
    edits = convert_grid(loaded, vectors)
    first_seconds = time.perf_counter() - start
    verified = verify(loaded, vectors, edits)
    seconds = in_turn(
        {
            "grid": lambda: convert_grid(loaded, vectors),
            "single": lambda: convert(loaded, vectors, grid()[0]),
        },
        rounds,
    )
    taken = spread(seconds["grid"])
    one_by_one = [len(grid()) * s for s in seconds["single"]]
    emit(
        "convert_grid",
        n={"rounds": rounds, "configurations": len(grid()), "sites": len(vectors.sites)},
        model=loaded.name,
        device=str(loaded.device),
        threads=torch.get_num_threads(),
        first_seconds=round(first_seconds, 4),
        seconds={"grid": taken, "single": spread(seconds["single"])},
        grid_over_single=paired_ratio(seconds["grid"], seconds["single"]),
        one_by_one_over_grid=paired_ratio(one_by_one, seconds["grid"]),
        aim={"grid_seconds": AIM_SECONDS},
        met=max(taken["median"], first_seconds) < AIM_SECONDS,
        verified=verified,
    )


if __name__ == "__main__":
    typer.run(main)
