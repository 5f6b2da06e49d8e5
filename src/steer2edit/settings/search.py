"""What a user decides of a search, of a comparison of methods, of a recipe, of a whole run, and of a stress run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import typer

from steer2edit.errors import InvalidValueError
from steer2edit.settings.declared import NUMBERS, Above, Checked, NotZero, Text, read_names
from steer2edit.settings.shared import Behaviour, Data, Limit, MaxNewTokens, Robust, Scorer, Seed

Strategy = Literal["grid", "tpe", "random"]
Range = tuple[float, float, float]
"""(lowest value, highest value, step of a grid)."""


@dataclass(frozen=True)
class SearchOptions(Checked):
    """What a user decides of a search.

    `ranges`, from a recipe, are (low, high, step) by coordinate, instead of everywhere and the coarse grid.

    Args:
        strategy: tpe or random (Optuna), or grid: the paper's coarse grid, then refined ones.
        trials: Configurations to try in all. Ask for more later to extend a search.
        blocks: Blocks that may be edited: attn, mlp or attn,mlp.
        max_kl: Largest KL to the base on benign requests, nats/token.
        max_over_refusal: Largest share of benign requests refused.
        min_utility: Smallest accuracy on the task of --utility.
        utility: A task with an accuracy, e.g. commonsenseqa or mmlu=FILE, measured too.
        strengths: Steering strengths; by default those that spend 10 to 100 % of --max-kl.
        generation: Trials proposed and measured together.
        storage: Folder that several workers share, each with an --out of its own.
        worker: Name of this process, where several share a storage.
    """

    behaviour: Behaviour = None
    strategy: Strategy = "tpe"
    trials: Annotated[int, typer.Option(min=1)] = 96
    blocks: Annotated[tuple[str, ...], Text(read_names, default="attn,mlp")] = ("attn", "mlp")
    max_kl: Annotated[float, typer.Option(min=0), Above(0)] = 0.15
    max_over_refusal: Annotated[float | None, typer.Option(min=0, max=1)] = None
    min_utility: Annotated[float | None, typer.Option(min=0, max=1)] = None
    utility: str | None = None
    strengths: Annotated[tuple[float, ...], NUMBERS, NotZero] = ()
    generation: Annotated[int, typer.Option(min=2)] = 16
    data: Data = field(default_factory=dict)
    storage: str | None = None
    worker: str = "main"
    limit: Limit = None
    max_new_tokens: MaxNewTokens = None
    seed: Seed = 0
    ranges: Mapping[str, Range] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.blocks or set(self.blocks) - {"attn", "mlp"}:
            raise InvalidValueError(f"blocks must be attn, mlp or both, got {', '.join(self.blocks) or 'none'}.")
        if not self.worker or "/" in self.worker or not self.worker.isprintable():
            raise InvalidValueError(f"a worker's name must be usable in a file name, got {self.worker!r}.")
        if self.storage is not None and "://" in self.storage:
            raise InvalidValueError(f"--storage is a folder that the workers share, got {self.storage!r}.")
        if self.min_utility is not None and self.utility is None:
            raise InvalidValueError("--min-utility needs a task to measure: --utility TASK, e.g. commonsenseqa.")


@dataclass(frozen=True)
class ComparisonOptions(Checked):
    """What a user decides of a comparison of methods.

    Args:
        kls: Drift to compare at, KL to the base in nats per token; several times.
        suppress: Take the behaviour away: negative strengths, and directional ablation too.
        utility: A task with an accuracy, e.g. commonsenseqa: what is lost of it is a cost.
        limit: Use at most this many items of every set; built in are 300 at most.
    """

    behaviour: Behaviour = None
    kls: Annotated[
        tuple[float, ...],
        typer.Option("--kl"),
        Text(lambda _, given: tuple(given), list[float], [0.01, 0.03, 0.1, 0.2]),
        Above(0),
    ] = (0.01, 0.03, 0.1, 0.2)
    suppress: bool = False
    utility: str | None = None
    data: Data = field(default_factory=dict)
    limit: Annotated[int, typer.Option(min=2)] = 300
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "kls", tuple(sorted(set(self.kls))))


Stage = Literal["coarse", "refined"]
Suite = Literal["quick", "full"]


@dataclass(frozen=True)
class RunOptions(Checked):
    """What a user decides of a run, or changes of a recipe.

    `other_model` says that a recipe runs on another model than its own, for which it was not refined.

    Args:
        kl: Drift that the edit and steering beside it spend, KL in nats per token. By default 0.03, and less where
            the edit is made to hold for less.
        search: Search for the edit, instead of making it of measured effects in one go.
        stage: Of a recipe: grid to search, refined (by default on the recipe's own model) or coarse.
        strategy: Of a search: grid, tpe or random, instead of the recipe's.
        trials: Of a search: configurations to try in all; ask for more later to extend a run.
        contrast: Preset or data file to make the vectors from, instead of the behaviour's.
        robust: wordings or tuned: an edit that holds in more wordings, or after a fine-tune: see extract.
        strengths: Of a search: steering strengths; by default 10 to 100 % of the largest KL.
        max_kl: Of a search: largest KL to the base, nats per token.
        published: Of a recipe: measure the published data sets, from the Hub.
    """

    kl: Annotated[float | None, typer.Option(min=0), Above(0)] = None
    search: bool = False
    stage: Stage | None = None
    strategy: Strategy | None = None
    trials: Annotated[int | None, typer.Option(min=1)] = None
    contrast: str | None = None
    robust: Robust = None
    strengths: Annotated[tuple[float, ...], NUMBERS, NotZero] = ()
    max_kl: Annotated[float | None, typer.Option(min=0)] = None
    published: bool = False
    limit: Limit = None
    max_new_tokens: MaxNewTokens = None
    seed: Seed = 0
    other_model: bool = False

    @property
    def of_search(self) -> dict[str, Any]:
        """What is said of a search, by the names of `SearchOptions`."""
        named = {name: getattr(self, name) for name in ("strategy", "trials", "strengths", "max_kl")}
        return {name: value for name, value in named.items() if value not in (None, ())}


@dataclass(frozen=True)
class StressOptions(Checked):
    """What a user decides of a stress run.

    Args:
        suite: Spend an hour, not ten minutes, of a small model on two idle cores.
        harmful: Requests that should be refused, instead of the built-in held-out ones: a file, or hub:OWNER/NAME/FILE,
            in the formats of `evaluate --list`.
        benign: Requests that should be answered, in the same way.
        strength: Strength that the edit is tested at; 1 is the edit as it is.
        max_new_tokens: Longest reply, where a test has none of its own.
    """

    suite: Annotated[
        Suite, typer.Option("--full/--quick"), Text(lambda _, full: "full" if full else "quick", bool, False)
    ] = "quick"
    harmful: Annotated[str | None, typer.Option(metavar="FILE")] = None
    benign: Annotated[str | None, typer.Option(metavar="FILE")] = None
    limit: Limit = None
    strength: Annotated[float, NotZero] = 1.0
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 24
    scorer: Scorer = "strict"
    seed: Seed = 0
