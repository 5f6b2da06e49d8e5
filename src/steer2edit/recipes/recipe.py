"""What a recipe says: model, contrast, grids, budget, data sets; by name or file, checked (docs/recipes.md)."""

import math
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import ErrorDetails

from steer2edit.core import TUNED_BLOCKS, Block
from steer2edit.errors import DataError, did_you_mean
from steer2edit.evaluation import TASK_KINDS
from steer2edit.search.space import check_range, range_values
from steer2edit.settings import ExtractOptions, SearchOptions, declared
from steer2edit.settings.search import Range
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


def _key(options: type, name: str, default: Any) -> tuple[Any, Any]:
    """A setting of a command as the key of a recipe: type, limits and names are those of the command."""
    setting = declared(options)[name]
    kind: Any = (str | None if setting.optional else str) if setting.choices else setting.kind
    above, option = setting.above, setting.option
    limits: dict[str, Any] = {"le": option.max, **({"gt": above.limit} if above else {"ge": option.min})}
    said: list[Any] = [Field(**{key: limit for key, limit in limits.items() if limit is not None})]
    if setting.choices:
        said.append(_known(name, setting.choices))
    if setting.kind == tuple[float, ...]:
        said.append(BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value))
    if setting.kind in (float, float | None):
        said[0] = Field(**{key: limit for key, limit in limits.items() if limit is not None}, allow_inf_nan=False)
    return Annotated[kind, *said], default


def _part(title: str, options: type, *names: str, **others: Any) -> Any:
    """A part of a recipe: settings of a command by name, with the command's defaults, and others as (type, default)."""
    defaults = vars(options)
    keys = {name: others.pop(name) if name in others else _key(options, name, defaults[name]) for name in names}
    return create_model(title, __base__=_Part, **{**others, **keys})


if TYPE_CHECKING:
    RecipeContrast = Any
    RecipeSearch = Any
    RecipeBudget = Any
else:
    RecipeContrast = _part(
        "RecipeContrast", ExtractOptions, "labeller", "max_new_tokens", "temperature",
        source=(Annotated[str, Field(min_length=1)], ...),
    )  # fmt: skip
    RecipeSearch = _part(
        "RecipeSearch", SearchOptions, "strategy", "trials", "generation", "strengths", "utility",
        strategy=_key(SearchOptions, "strategy", "grid"),
        trials=(Annotated[int, Field(ge=1)] | None, None),  # by default as many as the grid asks for
    )  # fmt: skip
    RecipeBudget = _part(
        "RecipeBudget", SearchOptions, "max_kl", "max_over_refusal", "min_utility",
        max_kl=_key(SearchOptions, "max_kl", ...),
    )  # fmt: skip


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
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
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
    search: RecipeSearch = Field(default_factory=lambda: RecipeSearch())
    budget: RecipeBudget
    data_sets: list[DataSet] = Field(default_factory=list)
    seed: int = 0

    @model_validator(mode="after")
    def _makes_sense(self) -> "Recipe":
        if self.budget.min_utility is not None and self.search.utility is None:
            raise ValueError("budget.min_utility needs a task to measure: give search.utility, e.g. commonsenseqa")
        return self

    def to_json(self) -> dict[str, Any]:
        """All settings by name."""
        return self.model_dump(mode="json")


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


def _parsed(file: Path | Traversable, where: str) -> Recipe:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"there is no file {where}. `steer2edit run --list` shows the recipes.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {where}: {error}") from error
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        twice = next(_repeated_keys(node), None)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise DataError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if twice is not None:
        raise DataError(
            f"{where}: the key {twice.value!r} is there twice (line {twice.start_mark.line + 1}). Keep one."
        )
    if not isinstance(content, dict):
        raise DataError(f"{where} must hold the keys of a recipe, got {_short(content)}. See docs/recipes.md.")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        # unknown keys first: one that is misspelt is missing too
        found = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        more = f"\n... and {len(found) - _MOST} more." if len(found) > _MOST else ""
        raise DataError("\n".join(_explained(where, one) for one in found[:_MOST]) + more) from error


def _repeated_keys(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """Keys that a mapping has before; YAML would take the last of them silently."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield key
                seen.add(key.value)
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            yield from _repeated_keys(entry)


def _explained(where: str, error: ErrorDetails) -> str:
    """One line: file, key, value, and what to do."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        *parents, last = error["loc"]
        known = _model_at(tuple(parents)).model_fields
        return f"{where}: there is no key {key!r}. {did_you_mean(str(last), known)}"
    if error["type"] == "missing":
        return f"{where}: the key {key!r} is missing. See docs/recipes.md."
    reason = error["msg"].removeprefix("Value error, ").removesuffix(".")
    if not key:
        return f"{where}: {reason}."
    return f"{where}: {key} = {_short(error['input'])}: {reason[:1].lower()}{reason[1:]}."


def _model_at(path: tuple[int | str, ...]) -> type[BaseModel]:
    """The part of the schema that a path of keys leads to."""
    model: type[BaseModel] = Recipe
    for part in path:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
            (model,) = [kind for kind in kinds if issubclass(kind, BaseModel)]
    return model


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
