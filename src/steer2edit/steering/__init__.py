"""Representation: contrast sets, and extraction with diagnosis."""

from steer2edit.steering.behaviour_folder import BehaviourFolder, ItemSet, built_in_names, find_behaviour
from steer2edit.steering.contrast import Contrast, ContrastSet, build_contrast, load_contrast
from steer2edit.steering.diagnosis import auroc
from steer2edit.steering.effects import measure_effects
from steer2edit.steering.examples import Example, prompt_digests, read_examples, require_no_overlap
from steer2edit.steering.extract import extract, measure_inputs
from steer2edit.steering.labels import find_labeller
from steer2edit.steering.presets import borderline_prompts, safety_prompts
from steer2edit.steering.refusal import RefusalPhrases, refusal_phrases

__all__ = [
    "BehaviourFolder",
    "Contrast",
    "ContrastSet",
    "Example",
    "ItemSet",
    "RefusalPhrases",
    "auroc",
    "borderline_prompts",
    "build_contrast",
    "built_in_names",
    "extract",
    "find_behaviour",
    "find_labeller",
    "load_contrast",
    "measure_effects",
    "measure_inputs",
    "prompt_digests",
    "read_examples",
    "refusal_phrases",
    "require_no_overlap",
    "safety_prompts",
]
