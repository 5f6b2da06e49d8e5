"""What every function of the Python face has: settings as keywords, arguments that are checked, progress."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from steer2edit.core import SteeringVectors, WeightEdit
from steer2edit.errors import InvalidValueError, did_you_mean
from steer2edit.models import LanguageModel
from steer2edit.progress import show_progress
from steer2edit.settings.declared import Checked, declared

Result = TypeVar("Result")
_OURS = "steer2edit."


def public(function: Callable[..., Result]) -> Callable[..., Result]:
    """The function with the fields of its settings as keywords, in place of each parameter that takes settings.

    Keywords have the names, defaults, limits and help texts of the command line. What it is called by is checked by
    name, models, edits and vectors by what they are, and long steps show their progress.
    """
    hints, parameters = get_type_hints(function), inspect.signature(function).parameters
    groups: dict[str, Any] = {
        name: kind for name, kind in hints.items() if isinstance(kind, type) and issubclass(kind, Checked)
    }
    plain = [parameter for name, parameter in parameters.items() if name not in groups]
    options = {
        key: (name, setting)
        for name, kind in groups.items()
        for key, setting in declared(kind).items()
        if key not in parameters
    }
    keywords = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=setting.default)
        for key, (_, setting) in options.items()
    ]
    signature = inspect.Signature([*plain, *keywords])
    objects = {parameter.name: found for parameter in plain if (found := _ours(hints[parameter.name]))}

    @wraps(function)
    def call(*args: Any, **given: Any) -> Result:
        if unknown := sorted(given.keys() - signature.parameters.keys()):
            known = [one.name for one in signature.parameters.values() if one.kind is one.KEYWORD_ONLY]
            raise InvalidValueError(
                f"{function.__name__} has no keyword {unknown[0]!r}. {did_you_mean(unknown[0], known)}"
            )
        chosen: dict[str, dict[str, Any]] = {name: {} for name in groups}
        for key in given.keys() & options.keys():
            chosen[options[key][0]][key] = given[key]
        made = {name: groups[name](**own) for name, own in chosen.items()}
        for name, value in signature.bind(*args, **given).arguments.items():
            if name in objects and not isinstance(value, objects[name]):
                wanted = " or ".join(kind.__name__ for kind in objects[name] if kind is not type(None))
                raise InvalidValueError(f"{function.__name__} takes {name} as {wanted}, got {_got(value)}.")
        with show_progress(piped=False):
            return function(*args, **{key: given[key] for key in given.keys() - options.keys()}, **made)

    call.__signature__ = signature  # type: ignore[attr-defined]
    if options:
        helps = (f"    {key}: {setting.option.help}" for key, (_, setting) in options.items())
        helped = ["Keywords, as on the command line:", *helps]
        call.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", *helped])
    return call


def require_fit(model: object, artifact: WeightEdit | SteeringVectors, allow_mismatch: bool) -> None:
    """Refuse what is no model, and a model that the artifact is not for."""
    if not isinstance(model, LanguageModel):
        raise InvalidValueError(f"an edit or vectors are used on a Model, got {_got(model)}.")
    model.require_fit(artifact, allow_mismatch=allow_mismatch)


def _ours(hint: Any) -> tuple[type, ...]:
    """The classes that a parameter takes, if all are of this package, or nothing."""
    kinds = get_args(hint) or (hint,)
    ours = [isinstance(kind, type) and kind.__module__.startswith(_OURS) for kind in kinds if kind is not type(None)]
    return kinds if ours and all(ours) else ()


def _got(value: Any) -> str:
    if isinstance(value, str | Path):
        return f"{str(value)!r}: load it first, with load, load_edit or load_vectors"
    return f"{type(value).__name__}"
