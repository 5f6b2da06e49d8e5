"""What a user changes of a recipe."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import typer

from steer2edit.settings.declared import NUMBERS, Checked, OneOf
from steer2edit.settings.search import STRATEGIES, Strategy
from steer2edit.settings.shared import Limit, MaxNewTokens

Stage = Literal["coarse", "refined"]


@dataclass(frozen=True)
class RecipeOptions(Checked):
    """What a user changes of a recipe; every option is described by its help text.

    `other_model` says that it runs on another model than its own, for which it was not refined.

    Raises:
        InvalidValueError: a value is out of range.
    """

    stage: Annotated[
        Stage | None,
        typer.Option(help="Grid to search, coarse or refined; refined by default, coarse with --model."),
        OneOf(get_args(Stage)),
    ] = None
    strategy: Annotated[
        Strategy | None,
        typer.Option(help="grid, tpe, nsga2 or random, instead of the recipe's."),
        OneOf(STRATEGIES),
    ] = None
    trials: Annotated[
        int | None, typer.Option(min=1, help="Configurations to try in all; ask for more later to extend a run.")
    ] = None
    contrast: Annotated[
        str | None, typer.Option(help="Preset or data file to make the vectors from, instead of the recipe's.")
    ] = None
    strengths: Annotated[
        tuple[float, ...],
        typer.Option(help="Steering strengths; by default those that spend 10 to 100 % of the largest KL."),
        NUMBERS,
    ] = ()
    max_kl: Annotated[
        float | None, typer.Option(min=0, help="Largest KL to the base, nats/token, instead of the recipe's.")
    ] = None
    published: Annotated[
        bool, typer.Option("--published", help="Measure the published data sets, from the Hub, not the built-in ones.")
    ] = False
    limit: Limit = None
    max_new_tokens: MaxNewTokens = None
    other_model: bool = False
