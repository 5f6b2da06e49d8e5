"""Weight edits: computing them from vectors, and applying them in memory."""

from steer2edit.editing.applying import edited, intervened, merged, merged_weight
from steer2edit.editing.baselines import ablation, rosi
from steer2edit.editing.convert import MIN_TOKENS, Factors, compute_factors, convert, natural_strength
