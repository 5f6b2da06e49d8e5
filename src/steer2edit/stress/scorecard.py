"""The scorecard: everything a run found, as the JSON that tables, pages and model cards are made from."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError

from steer2edit.artifacts.edits.scorecard_section import ScorecardSection
from steer2edit.artifacts.manifest import BaseModelRecord, Record, Sha256, first_fault, require_version
from steer2edit.errors import ArtifactError, DataError
from steer2edit.stress.contract import Contract, Verdict
from steer2edit.stress.findings import GROUPS, ArmRecord, Entry, Outcome

SCHEMA_VERSION: Literal[2] = 2


class EditRecord(Record):
    """Which edit was tested."""

    name: str
    sha256: Sha256
    hyperparameters: dict[str, Any]


class PromptsRecord(Record):
    """A set of prompts: where it comes from, how many, and the SHA-256 of their digests."""

    source: str
    n: int
    sha256: Sha256


SUMMARY_TITLES: Mapping[str, str] = {
    "held": "What held",
    "did_not_hold": "What did not hold",
    "costs": "What it cost",
    "no_costs": "What it did not cost",
    "controls": "Controls",
    "open": "What the intervals do not tell",
    "not_tested": "What was not tested",
}
_SECTION: Mapping[Outcome, str] = {
    "held": "held",
    "weakened": "did_not_hold",
    "failed": "did_not_hold",
    "cost": "costs",
    "no-cost": "no_costs",
    "control": "controls",
    "open": "open",
}


class Scorecard(Record):
    """What a stress run found. docs/stress.md explains every line."""

    schema_version: Literal[2] = SCHEMA_VERSION
    kind: Literal["stress-scorecard"] = "stress-scorecard"
    title: str
    created: datetime
    command: str = ""
    versions: dict[str, str]
    model: BaseModelRecord
    edit: EditRecord
    vectors_sha256: Sha256 | None = None
    suite: Literal["quick", "full"]
    settings: dict[str, Any]
    prompts: dict[str, PromptsRecord]
    arms: list[ArmRecord]
    steering: str
    verdict: Verdict
    contract: Contract
    plain: Entry
    tests: list[Entry]
    summary: dict[str, list[str]]

    def groups(self) -> list[tuple[str, list[Entry]]]:
        """Tests by group, with its title; groups without a test are left out."""
        found = [(title, [test for test in self.tests if test.group == group]) for group, title in GROUPS.items()]
        return [(title, tests) for title, tests in found if tests]

    def counts(self) -> list[tuple[str, dict[str, int]]]:
        """By group, how many lines came to what, and how many tests were `not tested`."""
        found = []
        for title, tests in self.groups():
            outcomes: dict[str, int] = dict(Counter(line.outcome for test in tests for line in test.lines))
            untested = sum(not test.tested for test in tests)
            found.append((title, outcomes | ({"not tested": untested} if untested else {})))
        return found

    def card_section(self) -> ScorecardSection:
        """It, short enough for a model card."""
        return ScorecardSection(
            edit_sha256=self.edit.sha256,
            created=self.created.isoformat(),
            suite=self.suite,
            verdict=(self.verdict.sentence, *self.verdict.reasons),
            claim=self.contract.claim,
            contract=[(one.title, one.words) for one in self.contract.conditions],
            counts=[(title, ", ".join(f"{n} {outcome}" for outcome, n in own.items())) for title, own in self.counts()],
            sentences={title: self.summary[name] for name, title in SUMMARY_TITLES.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return self.model_dump(mode="json")


def read_scorecard(content: Mapping[str, Any]) -> Scorecard:
    """A scorecard from its JSON.

    Raises:
        ArtifactError: of another schema version.
        DataError: it is malformed.
    """
    if content.get("kind") != "stress-scorecard":
        raise DataError(f"this is no scorecard of a stress run, but {content.get('kind')!r}.")
    require_version(version := content.get("schema_version"), "the scorecard", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"the scorecard has schema version {version}, of an earlier steer2edit, and no contract. Make it again "
            "with `stress` in a new run folder."
        )
    try:
        return Scorecard.model_validate(content)
    except ValidationError as error:
        raise DataError(f"the scorecard is malformed: {first_fault(error)}. Make it again with `stress`.") from error


def summarise(plain: Entry, tests: Sequence[Entry], left_out: Sequence[str] = ()) -> dict[str, list[str]]:
    """The sentences of all findings by what they came to, with further ones on what was not tested."""
    sections: dict[str, list[str]] = {name: [] for name in SUMMARY_TITLES}
    for entry in (plain, *tests):
        for line in entry.lines:
            sections[_SECTION[line.outcome]].append(named(entry.name, line.sentence))
        if not entry.tested:
            sections["not_tested"].append(f"{entry.name}: {entry.message}")
    sections["not_tested"] += left_out
    return sections


def named(test: str, text: str) -> str:
    """A line's name or sentence with its test's name in front, unless it begins with that."""
    return text if text.startswith(test) else f"{test}: {text}"
