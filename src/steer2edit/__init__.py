"""Turn an activation-steering vector into a persistent, component-level weight edit (arXiv 2602.09870).

import steer2edit as s2e

model = s2e.load_model("smollm2")
vectors = s2e.extract(model, s2e.load_contrast("safety", model))
edit = s2e.convert(model, vectors, s2e.Hyperparameters(rho_attn=0.2, rho_mlp=0.9, alpha=0.5, max_shift=1.0))
with s2e.edited(model, edit):
    ...
s2e.save_edit(model, edit, "edit")
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if "OMP_WAIT_POLICY" not in os.environ:
    # Read when torch loads libgomp. Its threads spin 300,000 times before they sleep, which starves the one they wait
    # for where other programs want the cores: replies take 3 to 30 times as long (benchmarks/busy_machine.py).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from steer2edit.artifacts import (
        apply_to_files,
        as_vectors,
        load_edit,
        load_official_edit,
        load_vectors,
        save_checkpoint,
        save_edit,
        save_vectors,
    )
    from steer2edit.core import Head, Neuron, Site, SteeringVectors, WeightEdit
    from steer2edit.editing import compute_factors, convert, edited, merged
    from steer2edit.engines import TransformersEngine
    from steer2edit.errors import Steer2EditError
    from steer2edit.evaluation import behaviour, edit_arm, evaluate, steering_arm
    from steer2edit.method import Hyperparameters, Rules, grid
    from steer2edit.models import LanguageModel, Sampling, generate, load_model
    from steer2edit.steering import benign_means, extract, load_contrast, measure_effects, measure_inputs, steered

_HOME = {
    "artifacts": (
        "apply_to_files",
        "as_vectors",
        "load_edit",
        "load_official_edit",
        "load_vectors",
        "save_checkpoint",
        "save_edit",
        "save_vectors",
    ),
    "core": ("Head", "Neuron", "Site", "SteeringVectors", "WeightEdit"),
    "editing": ("compute_factors", "convert", "edited", "merged"),
    "engines": ("TransformersEngine",),
    "errors": ("Steer2EditError",),
    "evaluation": ("behaviour", "edit_arm", "evaluate", "steering_arm"),
    "method": ("Hyperparameters", "Rules", "grid"),
    "models": ("LanguageModel", "Sampling", "generate", "load_model"),
    "steering": ("benign_means", "extract", "load_contrast", "measure_effects", "measure_inputs", "steered"),
}
_MODULE_OF = {name: f"steer2edit.{module}" for module, names in _HOME.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "Head",
    "Hyperparameters",
    "LanguageModel",
    "Neuron",
    "Rules",
    "Sampling",
    "Site",
    "Steer2EditError",
    "SteeringVectors",
    "TransformersEngine",
    "WeightEdit",
    "apply_to_files",
    "as_vectors",
    "behaviour",
    "benign_means",
    "compute_factors",
    "convert",
    "edit_arm",
    "edited",
    "evaluate",
    "extract",
    "generate",
    "grid",
    "load_contrast",
    "load_edit",
    "load_model",
    "load_official_edit",
    "load_vectors",
    "measure_effects",
    "measure_inputs",
    "merged",
    "save_checkpoint",
    "save_edit",
    "save_vectors",
    "steered",
    "steering_arm",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import steer2edit` and the command line's help stay instant."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'steer2edit' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
