"""The paper's equations as pure functions on tensors (arXiv 2602.09870); see docs/paper-to-code.md."""

from steer2edit.method.baselines import ablation_row, injection_row
from steer2edit.method.curvature import natural_direction, shared_cost
from steer2edit.method.effect import EffectFactors, effect_rows, largest_effect
from steer2edit.method.factors import SiteFactors, joined, site_factors
from steer2edit.method.gate import Gate, gated_effects
from steer2edit.method.hyperparameters import (
    COARSE_VALUES,
    EVERYTHING,
    GATED_RULES,
    PAPER_RULES,
    Hyperparameters,
    Rules,
    grid,
)
from steer2edit.method.rule import importance, input_directions, magnitude, output_direction

__all__ = [
    "COARSE_VALUES",
    "EVERYTHING",
    "GATED_RULES",
    "PAPER_RULES",
    "EffectFactors",
    "Gate",
    "Hyperparameters",
    "Rules",
    "SiteFactors",
    "ablation_row",
    "effect_rows",
    "gated_effects",
    "grid",
    "importance",
    "injection_row",
    "input_directions",
    "joined",
    "largest_effect",
    "magnitude",
    "natural_direction",
    "output_direction",
    "shared_cost",
    "site_factors",
]
