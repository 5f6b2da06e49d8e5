"""The nouns of the project: components, steering vectors, weight edits, interventions."""

from steer2edit.core.block_vectors import BlockVectors, UseAt, site_vectors
from steer2edit.core.components import (
    BLOCKS,
    SHARES_RHO,
    TUNED_BLOCKS,
    Block,
    Component,
    ExpertNeuron,
    Experts,
    Head,
    MixerHead,
    Neuron,
    Site,
)
from steer2edit.core.edit import SiteEdit, WeightEdit
from steer2edit.core.intervention import Combined, Editing, Intervention, Steering, finite_strength
from steer2edit.core.vectors import ClassMeans, SiteEffects, SiteMeans, SteeringVectors
