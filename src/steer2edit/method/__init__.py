"""The paper's equations as pure functions on tensors (arXiv 2602.09870); see docs/paper-to-code.md.

The paper is `rule`; what goes beyond it is `effect`, `gate` and `curvature`.
"""

from steer2edit.method.curvature import natural_direction, shared_cost
from steer2edit.method.effect import EffectFactors, effect_rows, largest_effect
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
from steer2edit.method.rule import (
    SiteFactors,
    importance,
    input_directions,
    joined,
    magnitude,
    output_direction,
    site_factors,
)

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
    "effect_rows",
    "gated_effects",
    "grid",
    "importance",
    "input_directions",
    "joined",
    "largest_effect",
    "magnitude",
    "natural_direction",
    "output_direction",
    "shared_cost",
    "site_factors",
]
