"""The nouns of the project: components, steering vectors, weight edits, interventions."""

from steer2edit.core.components import (
    BLOCKS as BLOCKS,
    SHARES_RHO as SHARES_RHO,
    TUNED_BLOCKS as TUNED_BLOCKS,
    Block as Block,
    Component as Component,
    Experts as Experts,
    Site as Site,
)
from steer2edit.core.edit import SiteEdit as SiteEdit, WeightEdit as WeightEdit
from steer2edit.core.intervention import (
    Combined as Combined,
    Editing as Editing,
    Intervention as Intervention,
    Steering as Steering,
    finite_strength as finite_strength,
)
from steer2edit.core.vectors import (
    ClassMeans as ClassMeans,
    SiteEffects as SiteEffects,
    SiteMeans as SiteMeans,
    SteeringVectors as SteeringVectors,
    UseAt as UseAt,
)
