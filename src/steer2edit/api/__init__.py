"""The Python face: a model, vectors, edits and results that show themselves in a notebook. docs/python.md has all."""

from steer2edit.api.edit import CombinedEdit, Edit, apply, audit, convert, export, load_edit, preview
from steer2edit.api.model import Model, load, wrap
from steer2edit.api.results import Results, evaluate
from steer2edit.api.runs import StressResults, refit, search, stress
from steer2edit.api.vectors import Vectors, extract, load_vectors
from steer2edit.errors import Steer2EditError

__all__ = [
    "CombinedEdit",
    "Edit",
    "Model",
    "Results",
    "Steer2EditError",
    "StressResults",
    "Vectors",
    "apply",
    "audit",
    "convert",
    "evaluate",
    "export",
    "extract",
    "load",
    "load_edit",
    "load_vectors",
    "preview",
    "refit",
    "search",
    "stress",
    "wrap",
]
