"""A search with its report, in one run folder."""

from pathlib import Path
from typing import Any

from steer2edit.core import SteeringVectors
from steer2edit.engines import Engine
from steer2edit.models import LanguageModel
from steer2edit.recipes.pages import write_run
from steer2edit.search import Narrate, SearchOptions, prepare_search, run_search, search_results


def search_and_report(
    model: LanguageModel,
    vectors: SteeringVectors,
    options: SearchOptions,
    out: Path,
    narrate: Narrate,
    *,
    command: str = "",
    engine: Engine | None = None,
    allow_mismatch: bool = False,
    allow_missing: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Search, and write `results.json`, `report.html` and the recommended `edit/` into the run folder.

    Args:
        model: the base model.
        vectors: with input means.
        options: what the user decided.
        out: the run folder; a search that is there goes on.
        narrate: told what was found, step by step.
        command: what the user typed, for the record.
        engine: runs the model; by default the transformers engine.
        allow_mismatch: accept vectors of another model.
        allow_missing: accept vectors that lack sites.
        force: accept vectors that the diagnosis calls noise.

    Returns:
        What `results.json` holds.
    """
    search = prepare_search(
        model, vectors, options, engine=engine, allow_mismatch=allow_mismatch, allow_missing=allow_missing, force=force
    )
    result = run_search(search, out, narrate)
    results = search_results(search, result, command)
    write_run(results, result.edit, out)
    return results
