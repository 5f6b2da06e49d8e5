"""The scorecard of stress tests in an edit's model card. `README.md` is not hashed: it may be written again."""

from pathlib import Path
from typing import Any

from steer2edit.artifacts.atomic import atomic_file
from steer2edit.artifacts.cards import CARD_FILE, cell, rendered
from steer2edit.artifacts.edits.adapter import load_edit
from steer2edit.errors import ArtifactError, MismatchError

_BEGIN, _END = "<!-- steer2edit scorecard -->", "<!-- end of the scorecard -->"
_CONTRACT = "### Contract"
_NEXT_SECTION = "## Where it comes from"


def scorecard_section(**found: Any) -> str:
    """The section, of what its template names, between comments by which it is found again."""
    return rendered("scorecard.md", **found, line=cell, heading=_CONTRACT, begin=_BEGIN, end=_END)


def has_contract(directory: Path) -> bool:
    """Whether the model card of a directory states a contract."""
    path = directory / CARD_FILE
    return path.is_file() and f"\n{_CONTRACT}\n" in path.read_text(encoding="utf-8")


def require_card(directory: Path) -> None:
    """Refuse, with an ArtifactError, a directory without an edit or a model card: for a check before hours of work."""
    load_edit(directory)
    if not (directory / CARD_FILE).is_file():
        raise ArtifactError(f"{directory} has no model card {CARD_FILE} to write a scorecard into. Make it again.")


def write_scorecard_section(directory: Path, edit_sha256: str, section: str) -> None:
    """Put the section of a run on this very edit (else a MismatchError) into its card, in place of the one there."""
    require_card(directory)
    if load_edit(directory).digest() != edit_sha256:
        raise MismatchError(
            f"the scorecard is about another edit than the one in {directory}: it is not written into its model card. "
            "Run the stress tests on this edit."
        )
    path = directory / CARD_FILE
    card = path.read_text(encoding="utf-8")
    before, begin, rest = card.partition(_BEGIN)
    head, next_section, tail = card.partition(f"\n{_NEXT_SECTION}")
    if begin:
        _, end, after = rest.partition(f"{_END}\n")
        card = before + section + (after if end else rest)
    else:
        card = f"{head}\n{section}{next_section}{tail}" if next_section else f"{card.rstrip()}\n\n{section}"
    with atomic_file(path, overwrite=True) as scratch:
        scratch.write_text(card, encoding="utf-8", errors="backslashreplace")
