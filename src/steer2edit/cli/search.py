"""`steer2edit search`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from steer2edit.cli.command import typed
from steer2edit.cli.engines import EngineOptions
from steer2edit.cli.options import JsonOption, Loading, ModelArgument, VectorsArgument
from steer2edit.settings import Accepting, SearchOptions


def search(
    model: ModelArgument,
    vectors: VectorsArgument,
    out: Annotated[Path, typer.Option(help="Run folder. A search that is there already goes on.")],
    options: SearchOptions,
    engine: EngineOptions,
    loading: Loading,
    accepting: Accepting,
    max_shift: Annotated[bool, typer.Option("--max-shift", hidden=True)] = False,  # its name before --limit-shift
    json_output: JsonOption = False,
) -> None:
    """Find the edit with most of a behaviour within a utility budget; resumable, with steering in the same run.

    \b
    Example:
    steer2edit search smollm2 vectors.safetensors --behaviour safety --out run
    """
    from steer2edit.artifacts import load_vectors
    from steer2edit.artifacts.run_folder import begun_with
    from steer2edit.cli.console import narrator, print_json, say
    from steer2edit.engines import RememberingEngine
    from steer2edit.progress import show_progress
    from steer2edit.recipes import search_and_report
    from steer2edit.search import behaviours_of, options_for

    loaded_vectors = load_vectors(vectors)
    options = options_for(loaded_vectors, replace(options, limit_shift=options.limit_shift or max_shift))
    behaviours_of(options)  # what is wrong with the data shall show before a model is loaded
    with show_progress():
        loaded = loading.load(model, begun_with(out), loaded_vectors.metadata)
        with engine.running(loaded) as runner:
            results = search_and_report(
                loaded, loaded_vectors, options, out, narrator(json_output), command=typed(),
                engine=RememberingEngine(runner), **vars(accepting),
            )  # fmt: skip
    if json_output:
        return print_json(results)
    for line in results["summary"]:
        say(line)
    say(f"\nAdapter: {out / 'edit'}\nReport: {out / 'report.html'}\nAll figures: {out / 'results.json'}")
    return None
