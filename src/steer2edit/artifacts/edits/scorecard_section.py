"""The scorecard of stress tests in an edit's model card. `README.md` is not hashed: it may be written again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from steer2edit.artifacts.atomic import atomic_file
from steer2edit.artifacts.cards import CARD_FILE, cell
from steer2edit.artifacts.edits.adapter import load_edit
from steer2edit.errors import ArtifactError, MismatchError

_BEGIN, _END = "<!-- steer2edit scorecard -->", "<!-- end of the scorecard -->"
_CAVEAT = "What was not tested is not known: a scorecard says how far these tests got, not that an edit is safe."
_CONTRACT = "### Contract"
_NEXT_SECTION = "## Where it comes from"


@dataclass(frozen=True)
class ScorecardSection:
    """What the card says of the stress tests.

    Args:
        edit_sha256: of the edit that was tested.
        created: when, ISO 8601.
        suite: quick or full.
        verdict: a sentence, and what it rests on.
        claim: what the contract does not claim.
        contract: (condition, what became of the edit's gain in it).
        counts: (group of tests, its lines by outcome in words).
        sentences: findings in plain sentences, by heading.
    """

    edit_sha256: str
    created: str
    suite: str
    verdict: Sequence[str]
    claim: str
    contract: Sequence[tuple[str, str]]
    counts: Sequence[tuple[str, str]]
    sentences: Mapping[str, Sequence[str]]

    def markdown(self) -> str:
        """The section, between comments by which it is found again."""
        sentence, *reasons = map(_line, self.verdict)
        lines = [_BEGIN, "## Stress tests", "", f"**{sentence}** {' '.join(reasons)}".strip(), ""]
        lines += [f"`steer2edit stress`, {self.suite} suite, {self.created}. Intervals are 95 %.", ""]
        lines += [_CONTRACT, "", _line(self.claim), "", "| condition | the edit's gain |", "| --- | --- |"]
        lines += [*(f"| {_line(condition)} | {_line(ending)} |" for condition, ending in self.contract), ""]
        if self.counts:
            lines += [
                "| group | lines |",
                "| --- | --- |",
                *(f"| {_line(g)} | {_line(c)} |" for g, c in self.counts),
                "",
            ]
        for heading, sentences in self.sentences.items():
            if sentences:
                lines += [f"### {_line(heading)}", "", *(f"- {_line(one)}" for one in sentences), ""]
        return "\n".join([*lines, _CAVEAT, _END, ""])


def has_contract(directory: Path) -> bool:
    """Whether the model card of a directory states a contract."""
    path = directory / CARD_FILE
    return path.is_file() and f"\n{_CONTRACT}\n" in path.read_text(encoding="utf-8")


def require_card(directory: Path) -> None:
    """Refuse a directory whose model card cannot be written: for a check before hours of work.

    Raises:
        ArtifactError: there is no edit, or no model card.
    """
    load_edit(directory)
    if not (directory / CARD_FILE).is_file():
        raise ArtifactError(
            f"{directory} has no model card {CARD_FILE} to write a scorecard into. Make the edit again."
        )


def write_scorecard_section(directory: Path, section: ScorecardSection) -> None:
    """Put the section into the model card of an edit, in place of the one that is there.

    Args:
        directory: of the edit.
        section: of a run on this very edit.

    Raises:
        MismatchError: the section is about another edit.
        ArtifactError: there is no edit or no model card, or it cannot be written.
    """
    require_card(directory)
    if load_edit(directory).digest() != section.edit_sha256:
        raise MismatchError(
            f"the scorecard is about another edit than the one in {directory}: it is not written into its model card. "
            "Run the stress tests on this edit."
        )
    path = directory / CARD_FILE
    text = _with_section(path.read_text(encoding="utf-8"), section.markdown())
    with atomic_file(path, overwrite=True) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")


def _with_section(card: str, section: str) -> str:
    before, begin, rest = card.partition(_BEGIN)
    if begin:
        _, end, after = rest.partition(f"{_END}\n")
        return before + section + after if end else before + section + rest
    head, next_section, tail = card.partition(f"\n{_NEXT_SECTION}")
    if next_section:
        return f"{head}\n{section}{next_section}{tail}"
    return f"{card.rstrip()}\n\n{section}"


def _line(text: str) -> str:
    """On one line, without what Markdown or a comment's end could be made of."""
    return cell(text).replace("<", "&lt;").replace("`", "'")
