"""A search with its report, and the files of any run that has ended: `results.json` and `report.html`."""

import json
from pathlib import Path
from typing import Any

from steer2edit.artifacts import load_edit
from steer2edit.artifacts.run_folder import write_json
from steer2edit.core import WeightEdit
from steer2edit.errors import ArtifactError
from steer2edit.report import write_comparison_page, write_report
from steer2edit.search import COMPARISON, Narrate, run_search, search_results
from steer2edit.search.search import Search

RESULTS_FILE = "results.json"


def write_run(results: dict[str, Any], edit: WeightEdit, out: Path) -> None:
    """Write `results.json` and `report.html` into a run folder, in place of those that are there."""
    write_json(out / RESULTS_FILE, results)
    write_report(results, edit, out / "report.html", overwrite=True)


def render_again(run: Path, page: Path | None = None) -> Path:
    """Make the report of a run folder again, from its `results.json` and `edit/`: by default as its `report.html`.

    Raises ArtifactError for a folder that is not of a run that has ended, and DataError for results that are none.
    """
    folder = run if (run / RESULTS_FILE).is_file() else run / "search"
    try:
        results = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"there is no {RESULTS_FILE} in {run}: give the --out of a search, a comparison, a recipe or the demo that "
            "has ended."
        ) from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / RESULTS_FILE} cannot be read: {error}. Run the search again.") from error
    if not isinstance(results, dict):
        raise ArtifactError(f"{folder / RESULTS_FILE} does not hold the results of a run. Run the search again.")
    page = page or folder / "report.html"
    if results.get("kind") == COMPARISON:
        write_comparison_page(results, page)
    else:
        write_report(results, load_edit(folder / "edit"), page, overwrite=True)
    return page


def search_and_report(search: Search, out: Path, narrate: Narrate, command: str = "") -> dict[str, Any]:
    """Search, and write `results.json`, `report.html` and the recommended `edit/` into the run folder."""
    result = run_search(search, out, narrate)
    results = search_results(search, result, command)
    write_run(results, result.edit, out)
    return results
