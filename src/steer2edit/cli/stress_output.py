"""What `stress` prints for people."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from steer2edit.cli.console import print_table, say

if TYPE_CHECKING:
    from steer2edit.stress import Contract, Scorecard, StressTest
    from steer2edit.stress.records import Entry, Line

_COLUMNS = ("", "outcome", "n", "base", "edit", "edit less base", "edit less steering")


def print_tests(tests: "Sequence[StressTest]") -> None:
    """Every test with its group and source; those of the contract are marked."""
    from steer2edit.stress import GROUPS

    say("Tests of the contract are marked *; the others are asked for with --only, by their name or a group's.\n")
    for group, title in GROUPS.items():
        say(f"{group}: {title}", style="bold")
        for test in (test for test in tests if test.group == group):
            say(f"  {test.name}{' *' if test.contract else ''}: {test.summary}")
            say(f"    source: {test.citation}")


def print_contract(contract: "Contract") -> None:
    """Every condition with its ending, and the lines that it rests on: rate, and share of the plain gain, by arm."""
    from steer2edit.estimates import PERCENT

    say(f"\n{contract.claim}\n")
    labels = list(dict.fromkeys(arm for one in contract.conditions for line in one.lines for arm in line.arms))
    rows = []
    for one in contract.conditions:
        rows.append([one.title, one.words, "", *([""] * len(labels)), f"{one.seconds:.0f} s"])
        for line in one.lines:
            cells = []
            for label in labels:
                found, share = line.arms.get(label), line.shares.get(label)
                left = (
                    "" if share is None or share.low is None else f"\nleft {PERCENT.text(replace(share, unscored=0))}"
                )
                cells.append("" if found is None else PERCENT.text(replace(found, unscored=0)) + left)
            seconds = "" if line.seconds is None else f"{line.seconds:.0f} s"
            rows.append([f"  {line.name}", line.outcome, str(next(iter(line.arms.values())).n), *cells, seconds])
    print_table(["", "", "n", *labels, "took"], rows, "Contract: refused; share of the plain gain that is left")
    say(contract.rules)


def print_scorecard(card: "Scorecard") -> None:
    """Contract, tables by group, the findings in plain sentences, and the verdict."""
    from steer2edit.stress.scorecard import SUMMARY_TITLES

    print_contract(card.contract)
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
    """The rows of one test in the table, but for those of the contract."""
    for line in (line for line in entry.lines if not line.decides):
        first, *others = line.arms
        for arm in line.judged or (["edit"] if "edit" in others else others or [first]):
            yield _row(entry.name, line, first, arm)


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
