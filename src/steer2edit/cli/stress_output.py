"""What `stress` prints for people."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from steer2edit.cli.console import print_table, say

if TYPE_CHECKING:
    from steer2edit.stress import Scorecard, StressOptions, StressTest
    from steer2edit.stress.scorecard import Entry, Line

_COLUMNS = ("", "outcome", "n", "base", "edit", "edit less base", "edit less steering")


def print_tests(tests: "Sequence[StressTest]", options: "StressOptions") -> None:
    """Every test with its group, suites, cost and source."""
    from steer2edit.errors import Steer2EditError
    from steer2edit.stress import SUITES
    from steer2edit.stress.rehearsal import COMPONENTS, SITES, stand_in

    size = f"an edit of {SITES} sites with {COMPONENTS} components each"
    say(f"Costs are replies + forward passes, with the built-in prompts, base, steering and {size}.\n")
    rehearsals = {suite: stand_in(options, suite) for suite in SUITES}
    for test in tests:
        say(f"{test.name}  [{test.group}]", style="bold")
        say(f"  {test.summary}")
        for suite in test.suites:
            try:
                cost = rehearsals[suite].cost(test.run)
                say(f"  {suite}: {cost.replies:,} replies + {cost.passes:,} passes")
            except Steer2EditError:
                say(f"  {suite}: depends on the model")
        say(f"  source: {test.citation}")


def print_scorecard(card: "Scorecard") -> None:
    """Verdict, tables by group, and the findings in plain sentences."""
    from steer2edit.stress.scorecard import SUMMARY_TITLES

    for title, tests in [("Plain prompts", [card.plain]), *card.groups()]:
        if rows := [row for test in tests for row in rows_of(test)]:
            say()
            print_table(_COLUMNS, rows, f"{title}, 95 % intervals")
    sections = card.summary
    for name, heading in SUMMARY_TITLES.items():
        if sections[name]:
            say(f"\n{heading}", style="bold")
            for sentence in sections[name]:
                say(f"- {sentence}")
    say(f"\nVerdict: {card.verdict.sentence}", style="bold")
    for reason in card.verdict.reasons:
        say(f"  {reason}")


def rows_of(entry: "Entry") -> Iterator[list[str]]:
    """The rows of one test in the table."""
    for line in entry.lines:
        first, *others = line.arms
        for arm in line.judged or (["edit"] if "edit" in others else others or [first]):
            yield _row(entry.name, line, line.against or first, arm)


def _row(test: str, line: "Line", first: str, arm: str) -> list[str]:
    from steer2edit.estimates import column
    from steer2edit.stress.scorecard import named

    found, difference = line.arms[arm], line.judged.get(arm) or line.differences.get(arm)
    against, change = line.edit_minus_steering, column(line.share, change=True)
    compared = "" if (first, arm) == ("base", "edit") or first == arm else f" ({arm} against {first})"
    return [
        f"{named(test, line.name)} {line.metric}{compared}",
        line.outcome,
        str(found.n),
        column(line.share).text(line.arms[first]),
        column(line.share).text(found),
        "" if difference is None else change.text(difference),
        "" if against is None or arm != "edit" else change.text(against),
    ]
