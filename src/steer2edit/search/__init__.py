"""Search: many configurations on validation items, the front that comes of them once on held-out items."""

from steer2edit.search.comparison import COMPARISON, run_comparison
from steer2edit.search.goal import Budget, Goal, pareto_front
from steer2edit.search.items import behaviours_of, options_for
from steer2edit.search.methods import PAPER, comparison_methods
from steer2edit.search.proposals import propose
from steer2edit.search.results import run_facts, search_results
from steer2edit.search.run import Narrate, SearchResult, front_of, run_search
from steer2edit.search.search import Search, prepare_search
from steer2edit.search.space import SearchSpace
from steer2edit.search.tradeoff import TradeoffComparison, compare_tradeoffs, hypervolume
from steer2edit.search.trials import Trial
from steer2edit.settings import COORDINATES, STRATEGIES, ComparisonOptions, Coordinates, SearchOptions, Strategy

__all__ = [
    "COMPARISON",
    "COORDINATES",
    "PAPER",
    "STRATEGIES",
    "Budget",
    "ComparisonOptions",
    "Coordinates",
    "Goal",
    "Narrate",
    "Search",
    "SearchOptions",
    "SearchResult",
    "SearchSpace",
    "Strategy",
    "TradeoffComparison",
    "Trial",
    "behaviours_of",
    "compare_tradeoffs",
    "comparison_methods",
    "front_of",
    "hypervolume",
    "options_for",
    "pareto_front",
    "prepare_search",
    "propose",
    "run_comparison",
    "run_facts",
    "run_search",
    "search_results",
]
