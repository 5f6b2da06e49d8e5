"""Recipes by name or file, read and checked."""

from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from steer2edit.errors import DataError, did_you_mean
from steer2edit.recipes.schema import Recipe

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
    """The recipe of a name, or in a YAML file.

    Args:
        name: of a recipe that comes with the package, or a path that ends in .yaml or .yml.

    Raises:
        DataError: there is none; it is not YAML; or a key or value is wrong. The message names file, key and value.
    """
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
            (model,) = [kind for kind in (annotation, *get_args(annotation)) if _is_model(kind)]
    return model


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
