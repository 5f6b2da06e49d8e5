"""The nouns of the project: components, steering vectors, weight edits, interventions."""

from steer2edit.core.components import BLOCKS, Block, Component, Head, Neuron, Site
from steer2edit.core.edit import SiteEdit, WeightEdit
from steer2edit.core.intervention import Editing, Intervention, Steering
from steer2edit.core.vectors import ClassMeans, SiteMeans, SteeringVectors

__all__ = [
    "BLOCKS",
    "Block",
    "ClassMeans",
    "Component",
    "Editing",
    "Head",
    "Intervention",
    "Neuron",
    "Site",
    "SiteEdit",
    "SiteMeans",
    "Steering",
    "SteeringVectors",
    "WeightEdit",
]
