"""`steer2edit demo`."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from steer2edit.cli.options import JsonOption, Loading, OverwriteOption, Placing
from steer2edit.settings import RunOptions, shared


def demo(
    placing: Placing,
    out: Annotated[Path, typer.Option(help="Directory for everything the demo writes.")] = Path("steer2edit-demo"),
    seed: shared.Seed = 0,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Make SmolLM2-135M refuse harmful requests more often, offline, in minutes, and show what it cost.

    It is `steer2edit run smollm2 safety`, with an edit by the paper's rule beside it, and the edited checkpoint. One
    that was stopped goes on.
    """
    from steer2edit.artifacts.run_folder import begun_with
    from steer2edit.cli.run import make_and_test
    from steer2edit.recipes import Extras

    if overwrite and begun_with(out):
        shutil.rmtree(out)
    options, extras = RunOptions(max_new_tokens=28, seed=seed), Extras(paper=True, verified=8)
    make_and_test("smollm2", "safety", out, options, Loading(**vars(placing)), extras=extras, json_output=json_output)
