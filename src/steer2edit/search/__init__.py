"""Search: many configurations on validation items, the front that comes of them once on held-out items."""

from steer2edit.search.comparison import (
    COMPARISON as COMPARISON,
    PAPER as PAPER,
    comparison_methods as comparison_methods,
    run_comparison as run_comparison,
)
from steer2edit.search.run import (
    Narrate as Narrate,
    run_facts as run_facts,
    run_search as run_search,
    search_results as search_results,
)
from steer2edit.search.search import (
    behaviours_of as behaviours_of,
    options_for as options_for,
    prepare_search as prepare_search,
)
