"""`steer2edit convert`."""

from pathlib import Path
from typing import Annotated

import typer

from steer2edit.cli.options import JsonOption, Loading, ModelArgument, OverwriteOption, VectorsArgument
from steer2edit.settings import Accepting, ConvertOptions


def convert(
    model: ModelArgument,
    vectors: VectorsArgument,
    out: Annotated[Path, typer.Option(help="Directory for the edit; must not exist.")],
    options: ConvertOptions,
    loading: Loading,
    accepting: Accepting,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Turn vectors into a rank-1 weight edit of heads and neurons, saved as a PEFT adapter.

    Of vectors with measured effects (extract --effects) an edit of these is made unless a budget rho is given.

    \b
    Example:
    steer2edit convert smollm2 vectors.safetensors --out edit
    steer2edit convert smollm2 vectors.safetensors --rho-attn 0.2 \\
      --rho-mlp 0.9 --alpha 0.5 --max-shift 1 --out edit
    """
    from steer2edit.artifacts import load_vectors, require_free, save_edit
    from steer2edit.cli.console import say
    from steer2edit.cli.inspect import print_edit
    from steer2edit.progress import show_progress
    from steer2edit.recipes import make_edit, preview
    from steer2edit.recipes.making import rules_of

    require_free(out, overwrite=overwrite)
    loaded_vectors = load_vectors(vectors)
    rules_of(options, loaded_vectors)  # what is wrong with the settings shall show before a model is loaded
    with show_progress():
        loaded = loading.load(model, loaded_vectors.metadata)
        edit = make_edit(loaded, loaded_vectors, options, accepting)
        save_edit(loaded, edit, out, overwrite=overwrite)
        seen = None if json_output else preview(loaded, loaded_vectors, edit)
    print_edit(edit, out, top=10, as_json=json_output)
    if not json_output:
        say("\nPreview", style="bold")
        say(repr(seen) if seen else "There is none: these vectors bring no validation rows to look at the edit with.")
