"""Whole runs: from a behaviour or a recipe to a tested edit, its figures and its report."""

from steer2edit.recipes.making import make_edit, make_vectors, preview, recipe_of, refit, told
from steer2edit.recipes.recipe import is_recipe, read_recipe, recipe_names
from steer2edit.recipes.recipe_run import run_recipe, search_options, template_args
from steer2edit.recipes.run import render_again, run_behaviour, search_and_report
