"""What a recipe says: model, contrast, grids, budget, data sets; by name or file, checked (docs/recipes.md)."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from steer2edit.errors import DataError, did_you_mean
from steer2edit.evaluation import TASK_KINDS
from steer2edit.search.space import read_range
from steer2edit.settings import ExtractOptions, SearchOptions
from steer2edit.settings.declared import Setting, declared
from steer2edit.settings.search import Range
from steer2edit.steering.behaviour_folder import find_behaviour
from steer2edit.steering.data_files import read_text


def _known(what: str, known: Iterable[str], name: str) -> str:
    if name not in known:
        raise ValueError(f"there is no {what} {name!r}. {did_you_mean(name, known)}")
    return name


def _settings(own: Mapping[str, Setting], needed: str | None = None) -> AfterValidator:
    """A mapping of settings that a command has too, each within its limits there."""

    def check(given: dict[str, Any]) -> dict[str, Any]:
        for name, value in given.items():
            own[_known("key", own, name)].check(value)
        if needed and not given.get(needed):
            raise ValueError(f"the key {needed!r} is missing")
        return given

    return AfterValidator(check)


_EXTRACT, _SEARCH = declared(ExtractOptions), declared(SearchOptions)
_CONTRAST = {name: _EXTRACT[name] for name in ("labeller", "max_new_tokens", "temperature")}
_SPACE = {name: _SEARCH[name] for name in ("strategy", "trials", "generation", "strengths", "utility")}
_BUDGET = {name: _SEARCH[name] for name in ("max_kl", "max_over_refusal", "min_utility")}


def _grid(given: object) -> dict[str, Range]:
    """Ranges by coordinate, but for blocks that are `off`, which is false in YAML."""
    if not isinstance(given, dict) or "alpha" not in given:
        raise ValueError("must have alpha, and rho_attn, rho_mlp or both, each [low, high, step]; a rho may be off")
    ranges = {
        name: read_range(name, own) for name, own in given.items() if own is not False and own not in (None, "off")
    }
    if not ranges.keys() & {"rho_attn", "rho_mlp"}:
        raise ValueError("rho_attn and rho_mlp are both off: nothing would be edited. Give one a range")
    return ranges


Grid = Annotated[dict[str, Range], BeforeValidator(_grid)]
"""(low, high, step) of the paper's coordinates, by name."""
Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, given: Any) -> Any:
        for key in given if isinstance(given, dict) else ():
            _known("key", cls.model_fields, str(key))
        return given


class RecipeModel(_Part):
    """The model of the recipe, and what holds for it alone."""

    id: Text
    refined: Grid
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    template_args: dict[str, Any] = Field(default_factory=dict)


class DataSet(_Part):
    """A task that the recommended edit is measured on, and where its published data are."""

    task: Annotated[str, AfterValidator(partial(_known, "task", TASK_KINDS))]
    published: str | None = None

    def spec(self, published: bool) -> str:
        """The task as `build_tasks` takes it: on published data, or on the built-in set."""
        return f"{self.task}={self.published}" if published and self.published else self.task


class Recipe(_Part):
    """From a model's name to the recommended edit and its report."""

    schema_version: Literal[1]
    title: Text
    behaviour: Annotated[str, AfterValidator(lambda source: find_behaviour(source) and source)]
    model: RecipeModel
    contrast: Annotated[dict[str, Any], _settings({"source": _EXTRACT["contrast"], **_CONTRAST}, "source")]
    coarse: Grid
    search: Annotated[dict[str, Any], _settings(_SPACE)] = Field(default_factory=dict)
    budget: Annotated[dict[str, Any], _settings(_BUDGET)]
    data_sets: list[DataSet] = Field(default_factory=list)
    seed: int = 0


_SUFFIXES = (".yaml", ".yml")
_FOLDER = Path(__file__).parent  # of those that come with the package
_MOST = 5  # mistakes that are named at once


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


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
    return _parsed(_FOLDER / f"{name}.yaml", f"recipe {name}")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key that a mapping has already; YAML would take the last of them silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for index, key in enumerate(keys):
            if key.value in [earlier.value for earlier in keys[:index]]:
                line = key.start_mark.line + 1
                raise DataError(f"the key {key.value!r} is there twice (line {line}). Keep one.")
        return super().construct_mapping(node, deep)


def _parsed(file: Path, where: str) -> Recipe:
    text = read_text(file)
    try:
        content = yaml.load(text, _Loader)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise DataError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DataError(f"{where} must hold the keys of a recipe, got {content!r:.80}. See docs/recipes.md.")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        found = error.errors()
        more = f"\n... and {len(found) - _MOST} more." if len(found) > _MOST else ""
        raise DataError("\n".join(_explained(where, one) for one in found[:_MOST]) + more) from error


def _explained(where: str, error: ErrorDetails) -> str:
    """One line: file, key, value, and what to do."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{where}: the key {key!r} is missing. See docs/recipes.md."
    reason = error["msg"].removeprefix("Value error, ").removesuffix(".")
    if not key:
        return f"{where}: {reason}."
    return f"{where}: {key} = {error['input']!r:.80}: {reason[:1].lower()}{reason[1:]}."
