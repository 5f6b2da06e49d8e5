"""The page of a stress run's scorecard: one file with everything inline, made without a model."""

from pathlib import Path

from steer2edit.artifacts.manifest import read_json
from steer2edit.report.html import rendered, write_page
from steer2edit.report.scorecard_content import Replies, scorecard_content
from steer2edit.stress.folder import StressFolder
from steer2edit.stress.run import SCORECARD_FILE
from steer2edit.stress.scorecard import Scorecard, read_scorecard


def render_scorecard(card: Scorecard, replies: Replies | None = None, *, full_replies: bool = False) -> str:
    """The scorecard as one HTML page that works offline.

    Every text of it is untrusted: it is escaped, and the page's content security policy allows no request and no
    script but its own.

    Args:
        card: the scorecard.
        replies: what the models said, by test, arm and line; none are shown without them.
        full_replies: show all replies as they are; otherwise a few of each line, shortened.
    """
    return rendered("scorecard", scorecard_content(card, replies or {}, full_replies=full_replies))


def write_scorecard(
    card: Scorecard, path: Path, replies: Replies | None = None, *, full_replies: bool = False, overwrite: bool = False
) -> None:
    """Render the scorecard to a file: complete or not at all.

    Raises:
        ArtifactError: the file exists or cannot be written.
    """
    write_page(render_scorecard(card, replies, full_replies=full_replies), path, overwrite=overwrite)


def write_stress_page(run: Path, page: Path | None = None, *, full_replies: bool = False) -> Path:
    """Make the page of a stress run from the `scorecard.json` and the replies in its folder.

    Args:
        run: the run folder.
        page: where it goes; by default `report.html` in the folder. Replaced.
        full_replies: show all replies as they are.

    Returns:
        Where the page is.

    Raises:
        ArtifactError: the folder holds no finished stress run, or the page cannot be written.
    """
    card, results = read_scorecard(read_json(run / SCORECARD_FILE)), StressFolder(run)
    replies = {entry.name: results.replies(entry.name) for entry in (card.plain, *card.tests) if entry.tested}
    page = page or run / "report.html"
    write_scorecard(card, page, replies, full_replies=full_replies, overwrite=True)
    return page
