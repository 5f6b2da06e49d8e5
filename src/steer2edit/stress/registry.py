"""Which stress tests there are: rows of `tests.toml`, and the families of `attacks.toml`."""

import tomllib
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import resources
from pkgutil import resolve_name

from steer2edit.errors import DataError, did_you_mean
from steer2edit.stress.attacks import families
from steer2edit.stress.conditions import worded
from steer2edit.stress.findings import GROUPS
from steer2edit.stress.subject import StressTest


def all_tests() -> list[StressTest]:
    """All tests, in the order of the scorecard."""
    rows = tomllib.loads(resources.files("steer2edit.stress").joinpath("tests.toml").read_text(encoding="utf-8"))
    functions = {name: resolve_name(f"steer2edit.stress.{row.pop('run')}") for name, row in rows.items()}
    tests = [StressTest(name=name, run=functions[name], **row) for name, row in rows.items()]
    for one in families():
        own = one.group != "static"
        run = partial(worded, name=one.name, attacks=one.attacks, decides=own)
        tests.append(StressTest(one.name, one.group, one.summary, one.citation, run, contract=own))
    return sorted(tests, key=lambda test: list(GROUPS).index(test.group))


def choose_tests(tests: Iterable[StressTest], only: Sequence[str] = ()) -> list[StressTest]:
    """The tests of the contract, or those that are asked for: by their name, or a group's.

    Raises:
        DataError: there is no test and no group of that name.
    """
    known = {test.name: test for test in tests}
    for name in only:
        if name not in (names := [*known, *GROUPS]):
            raise DataError(f"there is no stress test {name!r}. {did_you_mean(name, names)}")
    if only:
        return [test for name, test in known.items() if {name, test.group} & set(only)]
    return [test for test in known.values() if test.contract]
