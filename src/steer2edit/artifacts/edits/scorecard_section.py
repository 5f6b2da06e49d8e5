"""The scorecard of stress tests in an edit's model card. `README.md` is not hashed: it may be written again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from steer2edit.artifacts.atomic import atomic_file
from steer2edit.artifacts.cards import CARD_FILE, cell, rendered
from steer2edit.artifacts.edits.adapter import load_edit
from steer2edit.errors import ArtifactError, MismatchError

_BEGIN, _END = "<!-- steer2edit scorecard -->", "<!-- end of the scorecard -->"
_CONTRACT = "### Contract"
_NEXT_SECTION = "## Where it comes from"


@dataclass(frozen=True)
class ScorecardSection:
    """What the card says of the stress tests."""

    edit_sha256: str  # of the edit that was tested
    created: str  # when, ISO 8601
    suite: str  # quick or full
    verdict: Sequence[str]  # a sentence, and what it rests on
    claim: str  # what the contract does not claim
    contract: Sequence[tuple[str, str]]  # (condition, what became of the edit's gain in it)
    sentences: Mapping[str, Sequence[str]]  # findings in plain sentences, by heading

    def markdown(self) -> str:
        """The section, between comments by which it is found again."""
        return rendered("scorecard.md", **vars(self), line=cell, heading=_CONTRACT, begin=_BEGIN, end=_END)


def has_contract(directory: Path) -> bool:
    """Whether the model card of a directory states a contract."""
    path = directory / CARD_FILE
    return path.is_file() and f"\n{_CONTRACT}\n" in path.read_text(encoding="utf-8")


def require_card(directory: Path) -> None:
    """Refuse, with an ArtifactError, a directory without an edit or a model card: for a check before hours of work."""
    load_edit(directory)
    if not (directory / CARD_FILE).is_file():
        raise ArtifactError(f"{directory} has no model card {CARD_FILE} to write a scorecard into. Make it again.")


def write_scorecard_section(directory: Path, section: ScorecardSection) -> None:
    """Put the section of a run on this very edit (else a MismatchError) into its card, in place of the one there."""
    require_card(directory)
    if load_edit(directory).digest() != section.edit_sha256:
        raise MismatchError(
            f"the scorecard is about another edit than the one in {directory}: it is not written into its model card. "
            "Run the stress tests on this edit."
        )
    path, text = directory / CARD_FILE, section.markdown()
    card = path.read_text(encoding="utf-8")
    before, begin, rest = card.partition(_BEGIN)
    head, next_section, tail = card.partition(f"\n{_NEXT_SECTION}")
    if begin:
        _, end, after = rest.partition(f"{_END}\n")
        card = before + text + (after if end else rest)
    else:
        card = f"{head}\n{text}{next_section}{tail}" if next_section else f"{card.rstrip()}\n\n{text}"
    with atomic_file(path, overwrite=True) as scratch:
        scratch.write_text(card, encoding="utf-8", errors="backslashreplace")
