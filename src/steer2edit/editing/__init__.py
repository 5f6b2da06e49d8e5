"""Weight edits: computing them from vectors, and applying them in memory."""

from steer2edit.editing.applying import (
    edited as edited,
    intervened as intervened,
    merged as merged,
    merged_weight as merged_weight,
)
from steer2edit.editing.baselines import ablation as ablation, rosi as rosi
from steer2edit.editing.convert import (
    MIN_TOKENS as MIN_TOKENS,
    Factors as Factors,
    compute_factors as compute_factors,
    convert as convert,
    natural_strength as natural_strength,
)
