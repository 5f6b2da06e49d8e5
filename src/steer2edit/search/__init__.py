"""Search: many configurations on validation items, the front that comes of them once on held-out items."""

from steer2edit.search.comparison import COMPARISON, PAPER, comparison_methods, run_comparison
from steer2edit.search.run import Narrate, run_facts, run_search, search_results
from steer2edit.search.search import behaviours_of, options_for, prepare_search
