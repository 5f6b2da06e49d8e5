"""Whole runs: from a behaviour or a recipe to a tested edit, its figures and its report."""

from steer2edit.recipes.making import make_edit, make_vectors
from steer2edit.recipes.pages import render_again
from steer2edit.recipes.preview import Preview, preview
from steer2edit.recipes.reading import is_recipe, read_recipe, recipe_names
from steer2edit.recipes.recipe_run import run_recipe, search_options, template_args
from steer2edit.recipes.refit import Refitted, refit
from steer2edit.recipes.run import Extras, run_behaviour
from steer2edit.recipes.schema import Recipe
from steer2edit.recipes.searched import search_and_report
from steer2edit.settings import RunOptions

__all__ = [
    "Extras",
    "Preview",
    "Recipe",
    "Refitted",
    "RunOptions",
    "is_recipe",
    "make_edit",
    "make_vectors",
    "preview",
    "read_recipe",
    "recipe_names",
    "refit",
    "render_again",
    "run_behaviour",
    "run_recipe",
    "search_and_report",
    "search_options",
    "template_args",
]
