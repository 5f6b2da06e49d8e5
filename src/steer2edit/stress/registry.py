"""Which stress tests there are: rows of `tests.toml`, and the families of static attacks."""

import tomllib
from collections.abc import Iterable, Sequence
from importlib import resources
from pkgutil import resolve_name

from steer2edit.errors import DataError, did_you_mean
from steer2edit.stress.findings import Suite
from steer2edit.stress.static_attacks.static import family_tests
from steer2edit.stress.subject import StressTest


def all_tests() -> list[StressTest]:
    """All tests, in the order of the scorecard."""
    rows = tomllib.loads(resources.files("steer2edit.stress").joinpath("tests.toml").read_text(encoding="utf-8"))
    functions = {name: resolve_name(f"steer2edit.stress.{row.pop('run')}") for name, row in rows.items()}
    return [*family_tests(), *(StressTest(name=name, run=functions[name], **row) for name, row in rows.items())]


def choose_tests(tests: Iterable[StressTest], suite: Suite, only: Sequence[str] = ()) -> list[StressTest]:
    """The tests of a suite, or those that are asked for by name, whatever suite they are in.

    Raises:
        DataError: there is no test of that name.
    """
    known = {test.name: test for test in tests}
    for name in only:
        if name not in known:
            raise DataError(f"there is no stress test {name!r}. {did_you_mean(name, known)}")
    if only:
        return [test for name, test in known.items() if name in only]
    return [test for test in known.values() if suite in test.suites]
