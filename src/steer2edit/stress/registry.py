"""Which stress tests there are: those of this package, and those that other packages add by entry points."""

import re
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points

from steer2edit.errors import DataError, PluginError, did_you_mean
from steer2edit.stress.stress_test import GROUPS, SUITES, StressTest, Suite

ENTRY_POINTS = "steer2edit.stress"
"""The group of entry points; each names a function without arguments that returns a list of tests."""

RESERVED = "plain"
STATIC_TOGETHER = "static-together"
RESERVED_NAMES = (RESERVED, STATIC_TOGETHER)
"""What every run measures first, the prompts as they are; and the static attacks pooled. No test may be named so."""

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def find_tests() -> dict[str, StressTest]:
    """All tests by name, in the order of the scorecard.

    Raises:
        PluginError: a package's tests cannot be loaded, are no tests, or have a name that is taken; the message names
            the package.
    """
    found = [(test, "steer2edit") for test in built_in_tests()]
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: (_package(entry), entry.name)):
        found += [(test, _package(entry)) for test in plugged_in(entry)]
    return by_name(found)


def built_in_tests() -> list[StressTest]:
    """The tests of this package."""
    from steer2edit.stress.adaptive_attacks import adaptive
    from steer2edit.stress.causal import causal
    from steer2edit.stress.persistence import persistence
    from steer2edit.stress.side_effects import side_effects
    from steer2edit.stress.static_attacks import static
    from steer2edit.stress.weight_attacks import weight_space

    families = (static, adaptive, weight_space, persistence, side_effects, causal)
    return [test for family in families for test in family.tests()]


def plugged_in(entry: EntryPoint) -> list[StressTest]:
    """The tests that an entry point gives.

    Raises:
        PluginError: it cannot be loaded, or gives something else.
    """
    where = f"the stress tests of the package {_package(entry)} ({entry.name} = {entry.value})"
    remedy = "Repair the package, or uninstall it."
    try:
        function: Callable[[], Iterable[object]] = entry.load()
        tests = list(function())
    except Exception as error:  # foreign code raises what it likes
        raise PluginError(f"{where} cannot be loaded: {type(error).__name__}: {error}. {remedy}") from error
    for test in tests:
        if not isinstance(test, StressTest):
            raise PluginError(f"{where} include a {type(test).__name__}, which is no stress test. {remedy}")
    return [test for test in tests if isinstance(test, StressTest)]


def by_name(found: Iterable[tuple[StressTest, str]]) -> dict[str, StressTest]:
    """Tests by name, by group and then as given.

    Args:
        found: (test, package it comes from).

    Raises:
        PluginError: a name twice, a malformed name, or an unknown group or suite.
    """
    owners: dict[str, str] = {}
    tests: list[StressTest] = []
    for test, package in found:
        if problem := _problem(test):
            raise PluginError(f"the stress test {test.name!r} of the package {package} {problem}.")
        if test.name in owners:
            raise PluginError(
                f"there are two stress tests {test.name!r}, of the packages {owners[test.name]} and {package}. Rename "
                "one of them, or uninstall a package."
            )
        owners[test.name] = package
        tests.append(test)
    return {test.name: test for test in sorted(tests, key=lambda test: GROUPS.index(test.group))}


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


def _problem(test: StressTest) -> str:
    if not _NAME.fullmatch(test.name) or test.name in RESERVED_NAMES:
        reserved = ", ".join(RESERVED_NAMES)
        return f"has a name that is not lower-case words with dashes between them, or is one of {reserved}"
    if test.group not in GROUPS:
        return f"is of an unknown group {test.group!r}. Known: {', '.join(GROUPS)}"
    if not test.suites or not set(test.suites) <= set(SUITES):
        return f"must be in one or both of the suites {', '.join(SUITES)}, got {', '.join(sorted(test.suites))}"
    return ""


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "?"
