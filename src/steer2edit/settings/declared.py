"""Settings as frozen dataclasses: type, default, range and help text of each once, for every place that takes it.

A field is `name: type = default`, or `name: Annotated[type, typer.Option(min=...), ...] = default` where it has limits
or another name, and its help text is beside its name among the `Args` of the class. The command line makes its options
of the fields, recipes their keys, Python its keywords; `Checked` refuses what is out of range in all three.
"""

import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

from steer2edit.errors import InvalidValueError, did_you_mean

if sys.flags.optimize > 1:
    raise ImportError("python -OO takes docstrings away, where settings have their help texts: run it without -OO.")
_HELP = re.compile(r"^    (\w+): (.+(?:\n        .+)*)", re.MULTILINE)


@dataclass(frozen=True)
class Text:
    """How the command line writes a setting that is no plain value.

    Args:
        read: the value of (name of the option, what was typed).
        typed: what is typed: `str`, or `list[str]` for an option that may come several times.
        default: how the default is written.
    """

    read: Callable[[str, Any], Any]
    typed: Any = str
    default: Any = None


@dataclass(frozen=True)
class Above:
    """A lower limit that a setting may not have itself."""

    limit: float


class NotZero:
    """Marks a strength at which something is tested: 0 is the base itself."""


@dataclass(frozen=True)
class Setting:
    """A declared setting: its type without the rest, its default, and whatever was said of it."""

    name: str
    kind: Any
    default: Any
    option: OptionInfo
    text: Text | None
    above: Above | None
    not_zero: bool

    @property
    def flag(self) -> str:
        """What it is called on the command line; within `Annotated`, Typer keeps a name of its own as the default."""
        own = self.option.default
        return own if isinstance(own, str) else f"--{self.name.replace('_', '-')}"

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that it may be, if not any: those of a `Literal`."""
        return next((get_args(k) for k in (self.kind, *get_args(self.kind)) if get_origin(k) is Literal), ())

    @property
    def optional(self) -> bool:
        """Whether it may be `None`."""
        return type(None) in get_args(self.kind)

    def check(self, value: Any) -> None:
        """Refuse a value that is of another kind or out of range, by an InvalidValueError with value and constraint."""
        if value is None:
            return
        kinds = {self.kind, *get_args(self.kind), *([str] if self.choices else [])}
        for kind, other, what in (
            (str, int | float, "text"),
            (float, str, "a number"),
            (int, str | float, "an integer"),
        ):
            if kind in kinds and isinstance(value, other):
                raise InvalidValueError(f"{self.name} must be {what}, got {value!r}.")
        if self.choices and value not in self.choices:
            words = self.name.replace("_", " ")
            raise InvalidValueError(f"unknown {words} {value!r}. {did_you_mean(value, self.choices)}")
        values = value if isinstance(value, tuple | list) else (value,)
        numbers = [one for one in values if isinstance(one, int | float) and not isinstance(one, bool)]
        shown, least, most = ", ".join(map(str, values)), self.option.min, self.option.max
        if not all(map(math.isfinite, numbers)):
            raise InvalidValueError(f"{self.name} must be finite, got {shown}.")
        if self.not_zero and 0 in numbers:
            raise InvalidValueError(
                f"{self.name} must not be 0, got {', '.join(f'{number:g}' for number in numbers)}: at 0 there is the "
                "base alone, which everything is compared with anyway. 1 is an edit as it is."
            )
        if self.above and any(number <= self.above.limit for number in numbers):
            raise InvalidValueError(f"{self.name} must be > {self.above.limit:g}, got {shown}.")
        limits = ([] if least is None else [f">= {least:g}"]) + ([] if most is None else [f"<= {most:g}"])
        if any((least is not None and n < least) or (most is not None and n > most) for n in numbers):
            raise InvalidValueError(f"{self.name} must be {' and '.join(limits)}, got {shown}.")


def help_texts(doc: str | None) -> dict[str, str]:
    """What stands beside the names among the `Args` of a docstring."""
    return {name: " ".join(text.split()) for name, text in _HELP.findall(inspect.cleandoc(doc or ""))}


def setting_of(name: str, hint: Any, default: Any, helps: Mapping[str, str]) -> Setting | None:
    """The setting of a name and a type; `None` for what has no help text."""
    value_type, *said = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    of = {type(one): one for one in said}
    if OptionInfo not in of and name not in helps:
        return None
    option = copy(of.get(OptionInfo) or typer.Option())
    option.help = option.help or helps[name]
    if value_type is bool and not isinstance(option.default, str):
        option.default = f"--{name.replace('_', '-')}"  # without a --no-...
    return Setting(name, value_type, default, option, of.get(Text), of.get(Above), NotZero in said)


@cache
def declared(kind: Any) -> dict[str, Setting]:
    """The settings of a class by name, in their order: the fields with a help text."""
    helps = {name: text for base in reversed(kind.__mro__) for name, text in help_texts(base.__doc__).items()}
    found, hints = {}, get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if setting := setting_of(field.name, hints[field.name], default, helps):
            found[field.name] = setting
    return found


class Checked:
    """Base of settings that refuse what is out of range, by an InvalidValueError, when they are made."""

    def __post_init__(self) -> None:
        for name, setting in declared(type(self)).items():  # type: ignore[arg-type]
            setting.check(getattr(self, name))


def read_numbers(option: str, text: str) -> tuple[float, ...]:
    """`0.1,0.2` as numbers."""
    numbers = []
    for part in text.removesuffix(",").split(","):
        try:
            numbers.append(float(part))
        except ValueError as error:
            raise InvalidValueError(
                f"{option} takes numbers separated by commas, such as 0.5,1, and {part.strip()!r} is not a number."
            ) from error
    return tuple(numbers)


def read_names(option: str, text: str) -> tuple[str, ...]:
    """`attn,mlp` as names."""
    return tuple(part.strip() for part in text.split(","))


def read_number_or_off(option: str, text: str) -> float | None:
    """A number, or `None` for `off`."""
    if text.lower() == "off":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise InvalidValueError(f"{option} must be a number > 0 or off, got {text!r}.") from error


def read_values(option: str, given: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` arguments by name, values as JSON where they are."""
    values: dict[str, Any] = {}
    for name, text in _pairs(option, given, "NAME=VALUE"):
        try:
            values[name] = json.loads(text, parse_constant=int)  # NaN is no JSON
        except (ValueError, RecursionError):
            values[name] = text
    return values


def read_sets(option: str, given: Sequence[str]) -> Mapping[str, str]:
    """`harmful=advbench.csv` → {"harmful": "advbench.csv"}."""
    pairs = dict(_pairs(option, given, "SET=FILE, as in harmful=advbench.csv"))
    if empty := [name for name, source in pairs.items() if not source]:
        raise InvalidValueError(f"{option} takes SET=FILE, as in harmful=advbench.csv, got '{empty[0]}='.")
    return pairs


def _pairs(option: str, given: Sequence[str], form: str) -> Iterator[tuple[str, str]]:
    for text in given:
        name, found, value = text.partition("=")
        if not name or not found:
            raise InvalidValueError(f"{option} takes {form}, got {text!r}.")
        yield name, value


NUMBERS = Text(read_numbers)
VALUES = Text(read_values, list[str])
SETS = Text(read_sets, list[str])
