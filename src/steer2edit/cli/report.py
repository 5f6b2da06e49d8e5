"""`steer2edit report`."""

from pathlib import Path
from typing import Annotated

import typer

from steer2edit.cli.options import FullRepliesOption, JsonOption


def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Folder of a search, a comparison, a recipe, a stress run or the demo."),
    ],
    out: Annotated[Path | None, typer.Option(help="The page; by default report.html in the folder. Replaced.")] = None,
    full_replies: FullRepliesOption = False,
    json_output: JsonOption = False,
) -> None:
    """Make the HTML report of a run again: from its results.json and edit/, or from its scorecard.json.

    \b
    Example:
    steer2edit report run
    """
    from steer2edit.cli.console import print_json, say

    if (run / "scorecard.json").is_file():
        from steer2edit.report import write_stress_page

        page = write_stress_page(run, out, full_replies=full_replies)
    else:
        from steer2edit.recipes import render_again

        page = render_again(run, out)
    if json_output:
        return print_json({"report": str(page)})
    say(f"Report: {page}")
    return None
