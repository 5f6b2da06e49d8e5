"""What a user decides of a whole run."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import typer

from steer2edit.settings.declared import NUMBERS, Above, Checked, OneOf
from steer2edit.settings.search import STRATEGIES, Strategy
from steer2edit.settings.shared import Limit, MaxNewTokens, Seed

Stage = Literal["coarse", "refined"]


@dataclass(frozen=True)
class RunOptions(Checked):
    """What a user decides of a run, or changes of a recipe; every option is described by its help text.

    `other_model` says that a recipe runs on another model than its own, for which it was not refined.

    Raises:
        InvalidValueError: a value is out of range.
    """

    kl: Annotated[
        float,
        typer.Option(help="Drift that the edit and steering beside it spend, KL in nats per token.", min=0),
        Above(0),
    ] = 0.03
    search: Annotated[
        bool, typer.Option("--search", help="Search for the edit, instead of making it of measured effects in one go.")
    ] = False
    stage: Annotated[
        Stage | None,
        typer.Option(help="Of a recipe: grid to search, refined (by default on the recipe's own model) or coarse."),
        OneOf(get_args(Stage)),
    ] = None
    strategy: Annotated[
        Strategy | None,
        typer.Option(help="Of a search: grid, tpe, nsga2 or random, instead of the recipe's."),
        OneOf(STRATEGIES),
    ] = None
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Of a search: configurations to try in all; ask for more later to extend a run."),
    ] = None
    contrast: Annotated[
        str | None, typer.Option(help="Preset or data file to make the vectors from, instead of the behaviour's.")
    ] = None
    strengths: Annotated[
        tuple[float, ...],
        typer.Option(help="Of a search: steering strengths; by default 10 to 100 % of the largest KL."),
        NUMBERS,
    ] = ()
    max_kl: Annotated[
        float | None, typer.Option(min=0, help="Of a search: largest KL to the base, nats per token.")
    ] = None
    published: Annotated[
        bool, typer.Option("--published", help="Of a recipe: measure the published data sets, from the Hub.")
    ] = False
    limit: Limit = None
    max_new_tokens: MaxNewTokens = None
    seed: Seed = 0
    other_model: bool = False
