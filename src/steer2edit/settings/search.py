"""What a user decides of a search, of a comparison of methods, and of a recipe."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, get_args

import typer

from steer2edit.errors import InvalidValueError
from steer2edit.settings.declared import NUMBERS, Above, Checked, OneOf, Text, read_names
from steer2edit.settings.shared import Behaviour, Data, Limit, MaxNewTokens, Seed

Strategy = Literal["grid", "tpe", "nsga2", "random"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
Coordinates = Literal["paper", "threshold", "drift"]
COORDINATES: tuple[Coordinates, ...] = get_args(Coordinates)
STUDY_NAME = "steer2edit"

Range = tuple[float, float, float]
"""(lowest value, highest value, step of a grid)."""


@dataclass(frozen=True)
class SearchOptions(Checked):
    """What a user decides of a search; every option is described by its help text.

    `ranges`, from a recipe, are (low, high, step) by paper coordinate, instead of everywhere and the coarse grid.

    Raises:
        InvalidValueError: a value is out of range, or an option lacks another that it needs.
    """

    behaviour: Behaviour = None
    strategy: Annotated[
        Strategy,
        typer.Option(help="tpe, nsga2 or random (Optuna), or grid: the paper's coarse grid, then refined ones."),
        OneOf(STRATEGIES),
    ] = "tpe"
    trials: Annotated[
        int, typer.Option(min=1, help="Configurations to try in all. Ask for more later to extend a search.")
    ] = 96
    coordinates: Annotated[
        Coordinates,
        typer.Option(
            help="paper: rho_attn, rho_mlp, alpha; threshold: a threshold and a gain per block; drift: thresholds, the "
            "balance of the blocks and the drift to spend, from which the strength follows."
        ),
        OneOf(COORDINATES),
    ] = "paper"
    blocks: Annotated[
        tuple[str, ...],
        typer.Option(help="Blocks that may be edited: attn, mlp or attn,mlp."),
        Text(read_names, default="attn,mlp"),
    ] = ("attn", "mlp")
    limit_shift: Annotated[
        bool, typer.Option("--limit-shift", help="Beyond the paper: search the limit kappa of the mean shift too.")
    ] = False
    spare: Annotated[
        str | None,
        typer.Option(help="Beyond the paper: spare replies to benign requests, `benign` or a file; searches the gain."),
    ] = None
    max_kl: Annotated[
        float, typer.Option(min=0, help="Largest KL to the base on benign requests, nats/token."), Above(0)
    ] = 0.15
    max_over_refusal: Annotated[
        float | None, typer.Option(min=0, max=1, help="Largest share of benign requests refused.")
    ] = None
    min_utility: Annotated[
        float | None, typer.Option(min=0, max=1, help="Smallest accuracy on the task of --utility.")
    ] = None
    utility: Annotated[
        str | None, typer.Option(help="A task with an accuracy, e.g. commonsenseqa or mmlu=FILE, measured too.")
    ] = None
    target_kl: Annotated[
        float | None,
        typer.Option(min=0, help="Also compare edit and steering at strengths that spend this KL."),
        Above(0),
    ] = None
    strengths: Annotated[
        tuple[float, ...],
        typer.Option(help="Steering strengths; by default those that spend 10 to 100 % of --max-kl."),
        NUMBERS,
    ] = ()
    generation: Annotated[int, typer.Option(min=2, help="Trials proposed and measured together.")] = 16
    data: Data = field(default_factory=dict)
    storage: Annotated[
        str | None,
        typer.Option(help="Optuna storage URL to share between machines; default: a journal in --out."),
    ] = None
    study: Annotated[str, typer.Option(help="Name of the study in --storage, which may hold others.")] = STUDY_NAME
    worker: Annotated[str, typer.Option(help="Name of this process, where several share a storage.")] = "main"
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
        if self.seed < 0:
            raise InvalidValueError(f"a seed must be >= 0, got {self.seed}.")
        if self.min_utility is not None and self.utility is None:
            raise InvalidValueError("--min-utility needs a task to measure: --utility TASK, e.g. commonsenseqa.")

    def to_json(self) -> dict[str, Any]:
        """All options by name."""
        return {**asdict(self), "blocks": list(self.blocks), "strengths": list(self.strengths)}


@dataclass(frozen=True)
class ComparisonOptions(Checked):
    """What a user decides of a comparison of methods; every option is described by its help text.

    Raises:
        InvalidValueError: a value is out of range.
    """

    behaviour: Behaviour = None
    kls: Annotated[
        tuple[float, ...],
        typer.Option("--kl", help="Drift to compare at, KL to the base in nats per token; several times."),
        Text(lambda _, given: tuple(given), list[float], [0.01, 0.03, 0.1, 0.2]),
        Above(0),
    ] = (0.01, 0.03, 0.1, 0.2)
    suppress: Annotated[
        bool,
        typer.Option("--suppress", help="Take the behaviour away: negative strengths, and directional ablation too."),
    ] = False
    utility: Annotated[
        str | None, typer.Option(help="A task with an accuracy, e.g. commonsenseqa: what is lost of it is a cost.")
    ] = None
    data: Data = field(default_factory=dict)
    limit: Annotated[
        int, typer.Option(min=2, help="Use at most this many items of every set; built in are 300 at most.")
    ] = 300
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "kls", tuple(sorted(set(self.kls))))
