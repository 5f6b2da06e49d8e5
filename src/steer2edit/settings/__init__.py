"""Every setting once: what a command's options, a recipe's keys and Python's keywords are made of. Imports no torch."""

from steer2edit.settings.search import ComparisonOptions, RunOptions, SearchOptions, StressOptions
from steer2edit.settings.shared import (
    Accepting,
    ConvertOptions,
    ExtractOptions,
    Loading,
    Placing,
    PlainLoading,
    Reading,
    RefitOptions,
)
