"""Whole runs: a search with its report, and recipes that go from a model's name to one."""

from steer2edit.recipes.demo import DemoSettings, run_demo
from steer2edit.recipes.making import make_edit, make_vectors
from steer2edit.recipes.pages import render_again
from steer2edit.recipes.reading import read_recipe, recipe_names
from steer2edit.recipes.run import run_recipe, search_and_report, search_options, template_args
from steer2edit.recipes.schema import Recipe
from steer2edit.settings import RecipeOptions

__all__ = [
    "DemoSettings",
    "Recipe",
    "RecipeOptions",
    "make_edit",
    "make_vectors",
    "read_recipe",
    "recipe_names",
    "render_again",
    "run_demo",
    "run_recipe",
    "search_and_report",
    "search_options",
    "template_args",
]
