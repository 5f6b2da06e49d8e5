"""Search: many configurations on validation items, the front that comes of them once on held-out items."""

from steer2edit.evaluation import Calibration, calibrate
from steer2edit.search.comparison import COMPARISON, ComparisonOptions, run_comparison
from steer2edit.search.goal import Budget, Goal, pareto_front
from steer2edit.search.methods import comparison_methods
from steer2edit.search.options import SearchOptions, behaviours_of, prepare_search
from steer2edit.search.proposals import STRATEGIES, Strategy, propose
from steer2edit.search.results import search_results
from steer2edit.search.run import Narrate, SearchResult, front_of, run_search
from steer2edit.search.search import Search, SearchSettings
from steer2edit.search.space import COORDINATES, Coordinates, SearchSpace
from steer2edit.search.tradeoff import TradeoffComparison, compare_tradeoffs, hypervolume
from steer2edit.search.trials import Trial

__all__ = [
    "COMPARISON",
    "COORDINATES",
    "STRATEGIES",
    "Budget",
    "Calibration",
    "ComparisonOptions",
    "Coordinates",
    "Goal",
    "Narrate",
    "Search",
    "SearchOptions",
    "SearchResult",
    "SearchSettings",
    "SearchSpace",
    "Strategy",
    "TradeoffComparison",
    "Trial",
    "behaviours_of",
    "calibrate",
    "compare_tradeoffs",
    "comparison_methods",
    "front_of",
    "hypervolume",
    "pareto_front",
    "prepare_search",
    "propose",
    "run_comparison",
    "run_search",
    "search_results",
]
