"""The paper's ablations (Appendix E) at equal drift: what do its rules for k, g and λ buy?

One rule at a time is exchanged for its alternative. Rules differ in how large an edit they make from the same
(ρ, α) — a dot product is not bounded as a cosine is, ridge keeps every component — so at equal hyper-parameters one
would compare strengths, not rules. Hence every variant is first scaled to the same drift, KL(base ‖ model) on benign
validation requests (`calibrate`), and then all variants, the base and activation steering at that same drift are
measured on the same held-out requests in one call. A row marked with * did not reach the drift.

k   sensitivity `W_iᵀ v` (the paper's) · mean input `μ_i` · first singular vector of `W_i`
g   cosine (the paper's) · dot product
λ   elastic net (the paper's) · top-k: its components without the shrinkage · ridge: all components

ρ and α are thresholds on g. A dot product has another scale, so for it they are multiplied by the one factor that
leaves as many components as the cosine keeps: variants differ in which components and in what proportion, not in how
many. Intervals are 95 %: Wilson's for rates, Student's t for means, n as given.

Verified: the paper's variant is the conversion by the paper's rules, bit for bit, and the base's drift is 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from model_shapes import open_model
from timing import emit, say

from steer2edit.artifacts import load_vectors
from steer2edit.core import BLOCKS, Editing, Steering, SteeringVectors, WeightEdit
from steer2edit.editing import Factors, compute_factors, convert
from steer2edit.engines import Engine, RememberingEngine, TransformersEngine
from steer2edit.estimates import Condition, Estimate
from steer2edit.evaluation import BASE_ARM, Arm, Behaviour, behaviour, calibrate, evaluate
from steer2edit.method.hyperparameters import PAPER_RULES, Hyperparameters, Rules
from steer2edit.models import LanguageModel
from steer2edit.steering.contrast import load_contrast
from steer2edit.steering.extract import extract
from steer2edit.steering.secant import Calibration

VARIANTS = {
    "paper: k sensitivity, g cosine, λ elastic net": PAPER_RULES,
    "k mean": Rules(input_direction="mean"),
    "k svd": Rules(input_direction="svd"),
    "g dot": Rules(importance="dot"),
    "λ top-k": Rules(magnitude="top-k"),
    "λ ridge": Rules(magnitude="ridge"),
}
COLUMNS = {
    "safety": {"harmful_refused": "refused ↑", "benign_refused": "over-refusal ↓"},
    "truthfulness": {"truth_preferred": "truth preferred ↑", "truth_margin": "margin, nats ↑"},
    "conciseness": {"reply_tokens": "reply tokens ↓", "finished": "finished by itself ↑"},
}
DRIFT_COLUMNS = {"nll_increase": "NLL increase ↓", "kl": "KL"}


@dataclass(frozen=True)
class Variant:
    """An edit by other rules, and the strength at which it drifts as far as the others.

    Args:
        name: which rule is another.
        edit: at strength 1.
        share: of all components of the blocks that are on, edited ones.
        calibration: strength and drift on validation requests.
    """

    name: str
    edit: WeightEdit
    share: float
    calibration: Calibration

    @property
    def arm(self) -> Arm:
        """As it is measured."""
        return Arm("edit", self.name, Editing(self.edit, self.calibration.strength))


def edit_of(model: LanguageModel, vectors: SteeringVectors, rules: Rules, base: Hyperparameters) -> WeightEdit:
    """The edit of a variant; under a dot product, thresholds leave as many components as under the cosine."""
    factors = compute_factors(model, vectors, rules)
    if rules.importance == PAPER_RULES.importance:
        return factors.edit(base)
    usual = compute_factors(model, vectors)
    return factors.edit(rescaled(base, usual, factors))


def rescaled(base: Hyperparameters, usual: Factors, factors: Factors) -> Hyperparameters:
    """`base` with ρ of each block multiplied so that |g| > ρα holds for as many components as it usually does."""
    changed: dict[str, float] = {}
    for block in BLOCKS:
        rho = base.rho(block)
        if rho is None:
            continue
        share = (all_importance(usual, block) > rho * base.alpha_of(block)).double().mean().item()
        if base.alpha_of(block) == 0 or share == 0:
            raise SystemExit(f"{base}: an ablation of g needs alpha > 0 and thresholds that leave components.")
        threshold = all_importance(factors, block).double().quantile(1 - share).item()
        changed[f"rho_{block}"] = threshold / base.alpha_of(block)
    return replace(base, **changed)


def all_importance(factors: Factors, block: str) -> torch.Tensor:
    """|g| of all components of a block."""
    return torch.cat([f.importance.abs() for site, f in factors.sites.items() if site.block == block])


def share_edited(edit: WeightEdit) -> float:
    magnitudes = torch.cat([site.magnitude for site in edit.sites.values()])
    return (magnitudes != 0).double().mean().item()


def calibrated(
    engine: Engine, vectors: SteeringVectors, base: Hyperparameters, validation: Behaviour, target: float
) -> list[Variant]:
    variants = []
    for name, rules in VARIANTS.items():
        edit = edit_of(engine.model, vectors, rules, base)
        (found,) = calibrate(engine, [(lambda s, edit=edit: Editing(edit, s), 1.0)], validation.drift, target)  # type: ignore[misc]
        say(f"{name}: strength {found.strength:.3g} drifts {found.drift:.4f} after {found.steps} steps")
        variants.append(Variant(name, edit, share_edited(edit), found))
    return variants


def verify(engine: Engine, vectors: SteeringVectors, paper: WeightEdit, base: Hyperparameters, drifts: Any) -> None:
    expected = convert(engine.model, vectors, base)
    if any(not torch.equal(paper.sites[site].row, edit.row) for site, edit in expected.sites.items()):
        raise SystemExit("WRONG: the paper's variant is not the conversion by the paper's rules.")
    if drifts.value != 0:
        raise SystemExit(f"WRONG: the base drifts from itself by {drifts}.")


def shown(estimate: Estimate) -> str:
    """Value, interval and n as a cell."""
    if estimate.value is None:
        return "—"
    interval = "" if estimate.low is None else f" ({estimate.low:.3f} to {estimate.high:.3f})"
    return f"{estimate.value:.3f}{interval}, n={estimate.n}"


def table(name: str, conditions: Sequence[Condition], notes: dict[str, tuple[str, str]]) -> str:
    """Markdown, one row per variant."""
    columns = {**COLUMNS[name], **DRIFT_COLUMNS}
    lines = [
        f"| {name} | strength | edited | " + " | ".join(columns.values()) + " |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for condition in conditions:
        cells = [condition.label, *notes.get(condition.label, ("", ""))]
        cells += [shown(condition.metrics[metric]) for metric in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ablate(
    engine: Engine, vectors: SteeringVectors, name: str, base: Hyperparameters, target: float, limit: int | None
) -> str:
    """Calibrate, measure, emit JSON lines, and return the table."""
    validation, held_out = (behaviour(name, split, limit=limit) for split in ("validation", "held_out"))
    variants = calibrated(engine, vectors, base, validation, target)
    (steering,) = calibrate(engine, [(lambda s: Steering(vectors, s), 0.1)], validation.drift, target)
    arms = [BASE_ARM, Arm("steering", "activation steering", Steering(vectors, steering.strength))]
    conditions = evaluate(engine, held_out.tasks, [*arms, *(variant.arm for variant in variants)])
    verify(engine, vectors, variants[0].edit, base, conditions[0].metrics["kl"])
    notes = {"activation steering": (_strength(steering), "")}
    shares = {}
    for variant in variants:
        notes[variant.name] = (_strength(variant.calibration), f"{variant.share:.2%}")
        shares[variant.name] = variant.share
    found = {"activation steering": steering, **{variant.name: variant.calibration for variant in variants}}
    for condition in conditions:
        calibration = found.get(condition.label)
        emit(
            "ablations",
            behaviour=name,
            variant=condition.label,
            model=engine.model.name,
            dtype=str(engine.model.dtype).removeprefix("torch."),
            base_configuration=base.to_json(),
            target_kl=target,
            strength=None if calibration is None else calibration.strength,
            validation_kl=None if calibration is None else calibration.drift,
            drift_reached=None if calibration is None else calibration.reached,
            components_edited=shares.get(condition.label),
            metrics={metric: estimate.to_json() for metric, estimate in condition.metrics.items()},
        )
    return table(name, conditions, notes)


def _strength(found: Calibration) -> str:
    return f"{found.strength:.3g}{'' if found.reached else '*'}"


def _rho(text: str) -> float | None:
    return None if text == "off" else float(text)


def main(
    behaviours: str = "safety",
    model: str = "smollm2",
    dtype: str = "auto",
    device: str = "auto",
    vectors: Annotated[
        list[Path] | None, typer.Option(help="One file per behaviour, in their order; extracted if not given.")
    ] = None,
    rho_attn: Annotated[str, typer.Option(help="ρ of the heads, or off.")] = "0.15",
    rho_mlp: Annotated[str, typer.Option(help="ρ of the neurons, or off.")] = "off",
    alpha: float = 0.5,
    target_kl: Annotated[float, typer.Option(help="Drift that every variant spends, nats per token.")] = 0.1,
    limit: Annotated[int | None, typer.Option(min=2, help="Items of every set; all if not given.")] = None,
) -> None:
    base = Hyperparameters(_rho(rho_attn), _rho(rho_mlp), alpha)
    names = behaviours.split(",")
    if vectors and len(vectors) != len(names):
        raise SystemExit(f"{len(vectors)} --vectors for {len(names)} behaviours: give one file for each.")
    loaded = open_model(model, dtype, device)
    tables = []
    for index, name in enumerate(names):
        say(f"{name}: {base}, target KL {target_kl:g}")
        own = load_vectors(vectors[index]) if vectors else extract(loaded, load_contrast(name, loaded))
        engine = RememberingEngine(TransformersEngine(loaded))
        tables.append(ablate(engine, own, name, base, target_kl, limit))
    print("\n\n".join(tables))


if __name__ == "__main__":
    typer.run(main)
