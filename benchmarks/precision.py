"""How much of an edit survives the number format that the weights are stored in?

The physics. An edit moves an entry of W by a few per cent of the entries' size or less. A format that rounds entries
to a step s, coarser than the change δ, moves an entry either not at all or by s. If W lies anywhere between two
points of the grid, it crosses the middle with probability δ / s: the mean change is right, each single one is wrong,
and the error is about √(s / δ) times the change, which averages out over the many entries of a product. If W lies on
the grid already (a quantised checkpoint, taken apart, edited and quantised again), |δ| < s / 2 changes nothing: the
edit is lost, not blurred. Beside the weights, in a low-rank adapter, an edit is not rounded at all.

Three ways, then, to carry ΔW in a format Q: `rounded`, Q(W + ΔW), from the full-precision weights; `requantised`,
Q(Q(W) + ΔW), where only quantised ones are at hand; `adapter`, Q(W) + ΔW. All are compared with Q(W), the base in
that format.

Measured. Weights: ‖D − ΔW‖ / ‖ΔW‖ and ⟨D, ΔW⟩ / ‖ΔW‖² of the change D that is left, pooled over sites, for real
edits and for synthetic ones (a random direction added to every column, at 5 and 20 % of the column's norm), also on
Gaussian matrices; the cost of ten edits of a tenth each, and of undoing by subtraction. Behaviour: the model computes
in float32 with stored weights taken out again, so that only storage differs. KL per token of the base's own replies
to held-out benign requests, and refusals of held-out harmful ones. The embedding, which the bundled model also uses
as its output layer, is left as it is, as quantisers do.

Verified: formats against torchao's, bit by bit, and losses on values worked out by hand; an adapter's loss is 0; it
says what the dense Q(W) + ΔW says; the base in bf16 is the base; and after all of it the weights are what they were,
bit for bit.

    pip install --no-deps torchao==0.18.0
    python benchmarks/precision.py --write docs/precision.md
"""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from precision_tables import tables, written
from rounding_loss import (
    STEPS,
    Changes,
    column_edits,
    gaussian_like,
    losses,
    repeated_loss,
    unrestored,
    verify_arithmetic,
)
from stored_behaviour import REPLY_TOKENS, Probe, behaviour, edited_views
from stored_ways import Way
from timing import emit, say
from weight_formats import verify_formats

from steer2edit.artifacts import load_vectors, save_vectors
from steer2edit.core import SteeringVectors, WeightEdit
from steer2edit.editing import compute_factors
from steer2edit.engines import TransformersEngine
from steer2edit.evaluation.likelihood_tasks import base_answers
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import LanguageModel, Sampling, load_model, span_log_probabilities
from steer2edit.steering.contrast import load_contrast
from steer2edit.steering.extract import extract
from steer2edit.steering.presets import safety_prompts
from steer2edit.stress.quantisation import FORMATS, linear_weights

EDITS = {
    "weak": (Hyperparameters(0.1, None, 0.3), 0.25),
    "strong": (Hyperparameters(0.1, None, 0.3), 0.5),
    "with neurons": (Hyperparameters(0.15, 0.9, 0.05), 1.0),
}
"""Configuration and strength by name."""
COLUMN_SHARES = (0.05, 0.2)


def changes_of(model: LanguageModel, edit: WeightEdit) -> Changes:
    return [(view.clone(), change) for view, change in edited_views(model, edit)]


def weight_losses(name: str, changes: Changes) -> list[dict[str, Any]]:
    """A row for each format: what is left of one edit in the weights."""
    rows = []
    for one in FORMATS.values():
        ways: tuple[Way, ...] = ("rounded", "requantised", "adapter")
        found = losses(changes, one.rounded, ways)
        if found["adapter"].error > 1e-5:
            raise SystemExit(f"WRONG: beside {one.name} weights, {name} loses {found['adapter'].error}, not 0.")
        row = {"edit": name, "format": one.name, **{way: found[way].to_json() for way in ways}}
        if one.name in ("bf16", "fp16"):
            row["in_steps"] = repeated_loss(changes, one.rounded, STEPS).to_json()
            row["unrestored"] = round(unrestored(changes, one.rounded), 5)
        say(f"{name}, {one.name}: {row}")
        rows.append(row)
    return rows


def all_weight_losses(model: LanguageModel, edits: dict[str, WeightEdit]) -> list[dict[str, Any]]:
    rows = []
    for name, edit in edits.items():
        rows += weight_losses(name, changes_of(model, edit))
    weights = [site.weight.clone() for site in model.sites.values()]
    for kind, base in (("columns", weights), ("columns, Gaussian W", gaussian_like(weights, seed=1))):
        for share in COLUMN_SHARES:
            rows += weight_losses(f"{share:.0%} of {kind}", column_edits(base, share, seed=0))
    return rows


def size_of(changes: Changes) -> dict[str, float]:
    """Edited columns, and quantiles of ‖ΔW_:j‖ / ‖W_:j‖ over them."""
    ratios = torch.cat([c.norm(dim=0) / w.norm(dim=0) for w, c in changes])
    ratios = ratios[ratios > 0]
    low, middle, high = ratios.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    return {"columns": len(ratios), "p10": round(low, 5), "median": round(middle, 5), "p90": round(high, 5)}


def vectors_of(model: LanguageModel, path: Path | None, prompts: int) -> SteeringVectors:
    """From the file if it is there; otherwise extracted, and written there if a path is given."""
    if path is not None and path.exists():
        return load_vectors(path)
    vectors = extract(model, load_contrast("safety", model, limit=prompts))
    if path is not None:
        save_vectors(vectors, path)
    return vectors


def prepare(model: LanguageModel, benign: int, harmful: int) -> Probe:
    wicked, kind = safety_prompts("held_out")
    answers = base_answers(TransformersEngine(model), kind[:benign], Sampling(max_new_tokens=REPLY_TOKENS))
    replies = [answer for answer in answers if answer is not None]
    return Probe(model, replies, wicked[:harmful], span_log_probabilities(model, replies))


def main(
    model: str = "smollm2",
    vectors: Annotated[Path | None, typer.Option(help="Vectors to use; extracted and written there if absent.")] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts that vectors are extracted from.")] = 24,
    benign: Annotated[int, typer.Option(min=2, help="Held-out replies for KL.")] = 12,
    harmful: Annotated[int, typer.Option(min=2, help="Held-out requests for refusals.")] = 24,
    behaviour_edits: Annotated[str, typer.Option(help="Refusals are counted for the last one.")] = "strong",
    refusal_formats: str = "int8,int4",
    write: Annotated[Path | None, typer.Option(help="Markdown file whose tables are replaced.")] = None,
) -> None:
    verified = {"matrices_as_torchao": verify_formats()}
    verify_arithmetic()
    say("loading, and extracting vectors")
    loaded = load_model(model, dtype="float32", device="cpu")
    before = [weight.clone() for weight in linear_weights(loaded)]
    factors = compute_factors(loaded, vectors_of(loaded, vectors, prompts))
    edits = {name: factors.edit(h).scaled(strength) for name, (h, strength) in EDITS.items()}
    weights = all_weight_losses(loaded, edits)
    probe = prepare(loaded, benign, harmful)
    chosen = {name: edits[name] for name in behaviour_edits.split(",")}
    rows = behaviour(probe, chosen, list(FORMATS), refusal_formats.split(","))
    if any(not torch.equal(a, b) for a, b in zip(before, linear_weights(loaded), strict=True)):
        raise SystemExit("WRONG: the model's weights are not what they were.")
    result = {
        "n": {"sites": len(loaded.sites), "replies": len(probe.replies), "harmful": len(probe.harmful)},
        "model": loaded.name,
        "threads": torch.get_num_threads(),
        "torchao": version("torchao"),
        "edits": {
            name: {
                "hyperparameters": EDITS[name][0].to_json(),
                "strength": EDITS[name][1],
                "relative_size": size_of(changes_of(loaded, edit)),
            }
            for name, edit in edits.items()
        },
        "weights": weights,
        "behaviour": rows,
        "verified": verified,
    }
    emit("precision", **result)
    if write is not None:
        write.write_text(written(write.read_text(encoding="utf-8"), tables(result)), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
