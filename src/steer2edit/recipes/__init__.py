"""Whole runs: from a behaviour or a recipe to a tested edit, its figures and its report."""

from steer2edit.recipes.making import (
    make_edit as make_edit,
    make_vectors as make_vectors,
    preview as preview,
    recipe_of as recipe_of,
    refit as refit,
    told as told,
)
from steer2edit.recipes.recipe import is_recipe as is_recipe, read_recipe as read_recipe, recipe_names as recipe_names
from steer2edit.recipes.recipe_run import (
    run_recipe as run_recipe,
    search_options as search_options,
    template_args as template_args,
)
from steer2edit.recipes.run import (
    render_again as render_again,
    run_behaviour as run_behaviour,
    search_and_report as search_and_report,
)
