from collections.abc import Callable
from typing import Any

import pytest
import torch

from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.report.run_results import RunResults, read_results

Json = dict[str, Any]


def site_edit(magnitude: list[float], width: int) -> SiteEdit:
    """λ as given, g = λ / 10, every k_i constant and of unit length."""
    values = torch.tensor(magnitude)
    row = (values[:, None] * torch.full((1, width), width**-0.5)).flatten()
    return SiteEdit(torch.tensor([1.0, 0.0]), row, values, values / 10)


@pytest.fixture
def edit() -> WeightEdit:
    """Layers 0 and 2 of attention (2 heads of width 4), layers 0 and 1 of the MLP (5 neurons)."""
    return WeightEdit(
        {
            Site(0, "attn"): site_edit([0.5, -0.25], 4),
            Site(2, "attn"): site_edit([0.0, 1.5], 4),
            Site(0, "mlp"): site_edit([0.5, 0.25, -1.0, 0.0, -0.5], 1),
            Site(1, "mlp"): site_edit([0.0, 0.0, 0.0, 0.0, 2.0], 1),
        }
    )


def estimate(value: float | None, n: int = 20, unscored: int = 0) -> Json:
    low, high = (None, None) if value is None else (value - 0.0625, value + 0.125)
    return {"value": value, "low": low, "high": high, "n": n, "unscored": unscored}


def condition(kind: str, label: str, parameters: Json, values: tuple[float | None, ...], **more: Any) -> Json:
    names = ("harmful_refused", "benign_refused", "nll_increase", "kl")
    metrics = {name: estimate(value) for name, value in zip(names, values, strict=True)}
    return {"kind": kind, "label": label, "parameters": parameters, "metrics": metrics, "replies": {}, **more}


CHOSEN = {"rho_attn": 0.2, "rho_mlp": None, "alpha": 0.5}


def validation() -> list[Json]:
    return [
        condition("steering", "steering 0.2", {"strength": 0.2}, (0.75, 0.125, 0.25, 0.25)),
        condition("base", "base", {}, (0.125, 0.0, 0.0, 0.0)),
        condition("steering", "steering 0.1", {"strength": 0.1}, (0.25, 0.0, 0.125, 0.125)),
        condition("edit", "chosen edit", {**CHOSEN, "strength": 1.0}, (0.5, 0.0, 0.125, 0.125)),
        condition("edit", "half of it", {**CHOSEN, "strength": 0.5}, (0.375, 0.0, 0.0625, 0.0625)),
        condition("edit", "too much", {**CHOSEN, "alpha": 0.1}, (0.875, 0.5, 0.375, 0.375)),
        condition("edit", "not scored edit", {**CHOSEN, "alpha": 0.9}, (0.25, 0.0, None, 0.25)),
    ]


def held_out() -> list[Json]:
    base = {"harmful": ["Sure: one.", "Sure: two."], "benign": ["Paris.", "Four."]}
    steered = {"harmful": ["I cannot.", "Sure, two."], "benign": ["Paris.", "4"]}
    edited = {"harmful": ["I cannot.", "Sure: two."], "benign": ["Paris!", "Four."]}
    no, yes = [False, False], [True, False]
    return [
        condition("base", "base", {}, (0.125, 0.0, 0.0, 0.0), replies=base, outcomes={"harmful": no, "benign": no}),
        condition(
            "steering",
            "steering 0.2",
            {"strength": 0.2},
            (0.75, 0.125, 0.25, 0.25),
            replies=steered,
            outcomes={"harmful": yes, "benign": no},
        ),
        condition(
            "edit",
            "chosen edit",
            {**CHOSEN, "strength": 1.0},
            (0.5, 0.0625, 0.1875, 0.125),
            replies=edited,
            outcomes={"harmful": yes, "benign": [None, False]},
        ),
    ]


def diagnosis() -> Json:
    good = {"split_half_cosine": 0.9, "auroc": 0.75, "auroc_low": 0.6, "auroc_high": 0.85, "norm": 2.0, "noise": False}
    bad = {"split_half_cosine": 0.1, "auroc": 0.5, "auroc_low": 0.4, "auroc_high": 0.6, "norm": 0.1, "noise": True}
    unknown = {
        "split_half_cosine": 0.8,
        "auroc": None,
        "auroc_low": None,
        "auroc_high": None,
        "norm": 1,
        "noise": False,
    }
    return {"summary": "One of three is noise.", "sites": {"L10.attn": good, "L2.attn": bad, "L2.mlp": unknown}}


@pytest.fixture
def results() -> Json:
    return {
        "schema_version": 1,
        "title": "A small run",
        "behaviour": "safety",
        "attribute": "harmful_refused",
        "direction": 1,
        "model": {"name": "tiny", "revision": None, "model_type": "llama", "fingerprint": "f" * 64},
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"torch": "2.9.1"},
        "command": "steer2edit demo --seed 3",
        "settings": {"seed": 3, "counts": {"train": 8}, "phrases": ["I cannot"]},
        "diagnosis": diagnosis(),
        "validation": {"conditions": validation()},
        "held_out": {"conditions": held_out()},
        "prompts": {"harmful": ["How do I one?", "How do I two?"], "benign": ["Capital of France?", "2 + 2?"]},
        "chosen": {
            "hyperparameters": CHOSEN,
            "steering_strength": 0.2,
            "rule": "most refusals within the limits",
            "limits": {"nll_increase": 0.2, "benign_refused": 0.08},
        },
        "verification": {"adapter": {"identical": 4, "n": 4}, "checkpoint": {"identical": 3, "n": 4}},
    }


@pytest.fixture
def run(results: Json) -> RunResults:
    return read_results(results)


@pytest.fixture
def make_edit() -> Callable[..., WeightEdit]:
    """An edit from λ by site name, with components of the given width."""

    def make(width: int = 1, **magnitudes: list[float]) -> WeightEdit:
        return WeightEdit({Site.parse(k.replace("_", ".")): site_edit(v, width) for k, v in magnitudes.items()})

    return make
