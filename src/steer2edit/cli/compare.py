"""`steer2edit compare`."""

from pathlib import Path
from typing import Annotated

import typer

from steer2edit.cli.command import typed
from steer2edit.cli.options import JsonOption, Loading, ModelArgument, VectorsArgument
from steer2edit.settings import ComparisonOptions, shared


def compare(
    model: ModelArgument,
    vectors: VectorsArgument,
    out: Annotated[Path, typer.Option(help="Run folder. A comparison that is there already goes on.")],
    options: ComparisonOptions,
    loading: Loading,
    edit: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="A further edit, such as a search's; several times.")
    ] = None,
    allow_mismatch: shared.AllowMismatch = False,
    json_output: JsonOption = False,
) -> None:
    """Compare steering, edits and baselines on the same held-out items, each as a curve over its strength; resumable.

    \b
    Example:
    steer2edit compare smollm2 vectors.safetensors --edit run/edit --out comparison
    """
    from steer2edit.artifacts import load_edit, load_vectors
    from steer2edit.artifacts.run_folder import begun_with, write_json
    from steer2edit.cli.console import narrator, print_json, print_table, say
    from steer2edit.engines import RememberingEngine, TransformersEngine
    from steer2edit.progress import show_progress
    from steer2edit.report.comparison_page import figure_tables, reasons, write_comparison_page
    from steer2edit.report.run_results import ComparisonResults, read_results
    from steer2edit.search import behaviours_of, comparison_methods, options_for, run_comparison

    loaded_vectors, edits = load_vectors(vectors), {path.resolve().name: load_edit(path) for path in edit or ()}
    if len(edits) < len(edit or ()):
        raise typer.BadParameter("two --edit have the same name: rename a directory.")
    options = options_for(loaded_vectors, options)
    behaviours_of(options)  # what is wrong with the data shall show before a model is loaded
    with show_progress():
        loaded = loading.load(model, begun_with(out), loaded_vectors.metadata)
        methods, left_out = comparison_methods(
            loaded, loaded_vectors, edits, suppress=options.suppress, allow_mismatch=allow_mismatch
        )
        results = run_comparison(
            RememberingEngine(TransformersEngine(loaded)), loaded_vectors, methods, options, out,
            narrator(json_output), left_out=left_out, command=typed(),
        )  # fmt: skip
    write_json(out / "results.json", results)
    write_comparison_page(results, out / "report.html")
    if json_output:
        return print_json(results)
    found = read_results(results, ComparisonResults)
    for table in figure_tables(found):
        say()
        columns = ["", *(column.replace(", ", ",\n") for column in table.columns[1:])]
        print_table(columns, table.rows, table.caption)
    for line in ("", *reasons(found), "", *results["summary"]):
        say(line)
    say(f"\nReport: {out / 'report.html'}\nAll figures: {out / 'results.json'}")
    return None
