"""What a recipe says: model, contrast, grids, budget, data sets; by name or file, checked (docs/recipes.md)."""

import math
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from steer2edit.core import TUNED_BLOCKS, Block
from steer2edit.errors import DataError, did_you_mean
from steer2edit.evaluation import TASK_KINDS
from steer2edit.search.space import check_range, range_values
from steer2edit.settings import ExtractOptions, SearchOptions
from steer2edit.settings.search import Range, Strategy
from steer2edit.steering import find_behaviour


def _range_or_off(value: object) -> object:
    """`off` is false in YAML; anything else must be three numbers."""
    return None if value is False or value in (None, "off") else _range(value)


def _range(value: object) -> Range:
    numbers = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    if not numbers or len(value) != 3:  # type: ignore[arg-type]
        raise ValueError("must be [low, high, step], e.g. [0.1, 0.9, 0.2], or off for a block that is left out")
    low, high, step = (float(v) for v in value)  # type: ignore[attr-defined]
    return low, high, step


def _known(kind: str, names: tuple[str, ...]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"there is no such {kind}. {did_you_mean(name, names)}")
        return name

    return AfterValidator(check)


def _known_behaviour(source: str) -> str:
    """One that comes with the package, a folder or a contrast file."""
    find_behaviour(source)
    return source


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class RecipeContrast(_Part):
    """What the vectors are made from, as the options of `extract`."""

    source: Annotated[str, Field(min_length=1)]
    labeller: str | None = None
    max_new_tokens: Count = ExtractOptions.max_new_tokens
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = ExtractOptions.temperature


class RecipeSearch(_Part):
    """As the options of `search`; by default as many trials as the grid asks for."""

    strategy: Annotated[str, _known("strategy", get_args(Strategy))] = "grid"
    trials: Count | None = None
    generation: Annotated[int, Field(ge=2)] = SearchOptions.generation
    strengths: Annotated[tuple[float, ...], Field(strict=False)] = ()
    utility: str | None = None


class RecipeBudget(_Part):
    """What the edit may cost, as the options of `search`."""

    max_kl: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    max_over_refusal: Share | None = None
    min_utility: Share | None = None


class Grid(_Part):
    """Values of the paper's coordinates: (low, high, step) each, `None` for a block that is off."""

    rho_attn: Annotated[Range | None, BeforeValidator(_range_or_off)]
    rho_mlp: Annotated[Range | None, BeforeValidator(_range_or_off)]
    alpha: Annotated[Range, BeforeValidator(_range)]

    @model_validator(mode="after")
    def _is_a_grid(self) -> "Grid":
        if not self.blocks:
            raise ValueError("rho_attn and rho_mlp are both off: nothing would be edited. Give one a range")
        for name, values in self.ranges.items():
            check_range(name, *values)
        return self

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks that are on."""
        return tuple(block for block in TUNED_BLOCKS if getattr(self, f"rho_{block}") is not None)

    @property
    def ranges(self) -> dict[str, Range]:
        """The ranges by coordinate, without those of blocks that are off."""
        found = {"rho_attn": self.rho_attn, "rho_mlp": self.rho_mlp, "alpha": self.alpha}
        return {name: values for name, values in found.items() if values is not None}

    @property
    def points(self) -> int:
        """How many configurations it has."""
        return math.prod(len(range_values(*values)) for values in self.ranges.values())


class RecipeModel(_Part):
    """The model of the recipe, and what holds for it alone."""

    id: Annotated[str, Field(min_length=1)]
    refined: Grid
    max_new_tokens: Count | None = None
    template_args: dict[str, Any] = Field(default_factory=dict)


class DataSet(_Part):
    """A task that the recommended edit is measured on, and where its published data are."""

    task: Annotated[str, _known("task", tuple(TASK_KINDS))]
    published: str | None = None

    def spec(self, published: bool) -> str:
        """The task as `build_tasks` takes it: on published data, or on the built-in set."""
        return f"{self.task}={self.published}" if published and self.published else self.task


class Recipe(_Part):
    """From a model's name to the recommended edit and its report."""

    schema_version: Literal[1]
    title: Annotated[str, Field(min_length=1)]
    behaviour: Annotated[str, AfterValidator(_known_behaviour)]
    model: RecipeModel
    contrast: RecipeContrast
    coarse: Grid
    search: RecipeSearch = RecipeSearch()
    budget: RecipeBudget
    data_sets: list[DataSet] = Field(default_factory=list)
    seed: int = 0

    @model_validator(mode="after")
    def _makes_sense(self) -> "Recipe":
        if self.budget.min_utility is not None and self.search.utility is None:
            raise ValueError("budget.min_utility needs a task to measure: give search.utility, e.g. commonsenseqa")
        return self


_SUFFIXES = (".yaml", ".yml")
_SHOWN = 80  # characters of a value
_MOST = 5  # mistakes that are named at once


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    files = resources.files("steer2edit.recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def is_recipe(name: str) -> bool:
    """Whether a name is that of a recipe, or of a YAML file."""
    return name.endswith(_SUFFIXES) or name in recipe_names()


def read_recipe(name: str) -> Recipe:
    """The recipe of a name, or of a path that ends in .yaml or .yml; a DataError names file, key and value."""
    if name.endswith(_SUFFIXES):
        return _parsed(Path(name).expanduser(), name)
    names = recipe_names()
    if name not in names:
        raise DataError(f"there is no recipe {name!r}. {did_you_mean(name, names)} Or give a .yaml file.")
    return _parsed(resources.files("steer2edit.recipes") / f"{name}.yaml", f"recipe {name}")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key that a mapping has already; YAML would take the last of them silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for index, key in enumerate(keys):
            if key.value in [earlier.value for earlier in keys[:index]]:
                line = key.start_mark.line + 1
                raise DataError(f"the key {key.value!r} is there twice (line {line}). Keep one.")
        return super().construct_mapping(node, deep)


def _parsed(file: Path | Traversable, where: str) -> Recipe:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"there is no file {where}. `steer2edit run --list` shows the recipes.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {where}: {error}") from error
    try:
        content = yaml.load(text, _Loader)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise DataError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DataError(f"{where} must hold the keys of a recipe, got {_short(content)}. See docs/recipes.md.")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        # unknown keys first: one that is misspelt is missing too
        found = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        more = f"\n... and {len(found) - _MOST} more." if len(found) > _MOST else ""
        raise DataError("\n".join(_explained(where, one) for one in found[:_MOST]) + more) from error


def _explained(where: str, error: ErrorDetails) -> str:
    """One line: file, key, value, and what to do."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        *parents, last = error["loc"]
        return f"{where}: there is no key {key!r}. {did_you_mean(str(last), _part_at(parents).model_fields)}"
    if error["type"] == "missing":
        return f"{where}: the key {key!r} is missing. See docs/recipes.md."
    reason = error["msg"].removeprefix("Value error, ").removesuffix(".")
    if not key:
        return f"{where}: {reason}."
    return f"{where}: {key} = {_short(error['input'])}: {reason[:1].lower()}{reason[1:]}."


def _part_at(path: Sequence[int | str]) -> type[BaseModel]:
    """The part of a recipe that a path of keys leads to."""
    part: type[BaseModel] = Recipe
    for key in path:
        if isinstance(key, str):
            annotation = part.model_fields[key].annotation
            kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
            (part,) = [kind for kind in kinds if issubclass(kind, BaseModel)]
    return part


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
