"""A function's settings as keywords: the names, defaults, limits and help texts of the command line."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import wraps
from typing import Any, TypeVar, get_type_hints

from steer2edit.errors import InvalidValueError, did_you_mean
from steer2edit.progress import show_progress
from steer2edit.settings.declared import Checked, Setting, declared

Function = TypeVar("Function", bound=Callable[..., Any])


def takes_settings(function: Function) -> Function:
    """The function with the fields of its settings as keywords, in place of each parameter that takes settings.

    What it is called by is checked by name, and long steps show their progress.
    """
    hints = get_type_hints(function)
    groups = {name: kind for name, kind in hints.items() if isinstance(kind, type) and issubclass(kind, Checked)}
    own = inspect.signature(function).parameters.values()
    plain = [parameter for parameter in own if parameter.name not in groups]
    taken = {parameter.name for parameter in plain}
    settings = {name: [k for k in _defaults(kind) if k not in taken] for name, kind in groups.items()}
    keywords = {
        key: inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=_defaults(groups[name])[key])
        for name, keys in settings.items()
        for key in keys
    }
    known = [parameter.name for parameter in plain if parameter.kind is inspect.Parameter.KEYWORD_ONLY]

    @wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        if unknown := sorted(given.keys() - keywords.keys() - taken):
            raise InvalidValueError(
                f"{function.__name__} has no keyword {unknown[0]!r}. {did_you_mean(unknown[0], [*known, *keywords])}"
            )
        made = {
            name: groups[name](**{key: given.pop(key) for key in keys if key in given})
            for name, keys in settings.items()
        }
        with show_progress(piped=False):
            return function(*args, **given, **made)

    call.__signature__ = inspect.Signature([*plain, *keywords.values()])  # type: ignore[attr-defined]
    helps = {key: setting.option.help for kind in groups.values() for key, setting in _declared(kind).items()}
    helped = ["Keywords, as on the command line:", *(f"    {key}: {helps[key]}" for key in keywords)]
    call.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", *helped])
    return call  # type: ignore[return-value]


def _declared(kind: Any) -> Mapping[str, Setting]:
    return declared(kind)


def _defaults(kind: Any) -> dict[str, Any]:
    """The declared fields with their defaults."""
    made = {one.name: one.default if one.default_factory is MISSING else one.default_factory() for one in fields(kind)}
    return {name: made[name] for name in declared(kind)}


def finite(strength: float) -> float:
    """A strength.

    Raises:
        InvalidValueError: it is infinite or no number.
    """
    if not math.isfinite(strength):
        raise InvalidValueError(f"strength must be finite, got {strength}.")
    return float(strength)
