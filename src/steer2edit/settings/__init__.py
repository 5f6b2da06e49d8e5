"""Every setting once: what a command's options, a recipe's keys and Python's keywords are made of. Imports no torch."""

from steer2edit.settings.declared import Checked, Setting, Text, declared
from steer2edit.settings.run import RunOptions
from steer2edit.settings.search import COORDINATES, STRATEGIES, ComparisonOptions, Coordinates, SearchOptions, Strategy
from steer2edit.settings.shared import Accepting
from steer2edit.settings.vectors import ConvertOptions, ExtractOptions

__all__ = [
    "COORDINATES",
    "STRATEGIES",
    "Accepting",
    "Checked",
    "ComparisonOptions",
    "ConvertOptions",
    "Coordinates",
    "ExtractOptions",
    "RunOptions",
    "SearchOptions",
    "Setting",
    "Strategy",
    "Text",
    "declared",
]
