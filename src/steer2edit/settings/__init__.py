"""Every setting once: what a command's options, a recipe's keys and Python's keywords are made of. Imports no torch."""

from steer2edit.settings.search import (
    ComparisonOptions as ComparisonOptions,
    RunOptions as RunOptions,
    SearchOptions as SearchOptions,
    StressOptions as StressOptions,
)
from steer2edit.settings.shared import (
    Accepting as Accepting,
    ConvertOptions as ConvertOptions,
    ExtractOptions as ExtractOptions,
    Loading as Loading,
    Placing as Placing,
    Reading as Reading,
    RefitOptions as RefitOptions,
)
