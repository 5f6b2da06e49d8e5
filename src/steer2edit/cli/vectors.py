"""`steer2edit vectors`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer2edit.cli.options import JsonOption, OverwriteOption

if TYPE_CHECKING:
    from steer2edit.core import BlockVectors, SteeringVectors


def vectors(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="VECTORS",
            help="A file of `extract`; safetensors or .pt with L<layer>.attn|mlp keys; the official Steer2Edit "
            "directions .pt; lm-eval's steered .pt; a GGUF control vector; a CAST .svec; a Neuronpedia .json.",
        ),
    ] = None,
    from_sae: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A SAELens folder (cfg.json, sae_weights.safetensors), with --feature."),
    ] = None,
    feature: Annotated[int | None, typer.Option(help="Of --from-sae: the feature whose decoder row is v.")] = None,
    to: Annotated[
        Path | None, typer.Option(help="Also write them there: .safetensors, .gguf (control vector) or .svec.")
    ] = None,
    use_at: Annotated[
        str | None,
        typer.Option(
            help="For directions of block outputs, to .safetensors: the projections of the same layer that take them "
            "as their vectors: mlp, attn or both."
        ),
    ] = None,
    model_hint: Annotated[
        str | None, typer.Option(help="Model type to name in .gguf and .svec, e.g. llama; from the file if it knows.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="To .safetensors: only v and the input means, for other programs.")
    ] = False,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Show what a file of steering vectors holds, and convert it between formats where they can hold the same.

    \b
    Example:
    steer2edit vectors happy.gguf --use-at mlp --to happy.safetensors

    A feature of a sparse autoencoder: --from-sae DIR --feature 1234 --to feature.safetensors. One of the residual
    stream is used at the MLP that writes there, unless --use-at says otherwise.

    Control vectors and .svec files have one direction per block output; steer2edit works with one per projection.
    Neither is turned into the other silently: extract with --block-outputs to get both, or give --use-at.
    """
    if to is None and (use_at or plain or model_hint):
        raise typer.BadParameter("--use-at, --plain and --model-hint are about what is written: give --to FILE too.")
    if (file is None) == (from_sae is None) or (from_sae is None) != (feature is None):
        raise typer.BadParameter("give a file of vectors, or --from-sae DIR with --feature NUMBER.")
    from steer2edit.artifacts.vector_files.features import read_sae_feature
    from steer2edit.artifacts.vector_files.vectors import read_vectors

    source = file or from_sae
    assert source is not None
    found = read_vectors(source) if feature is None else read_sae_feature(source, feature)
    result = describe(found, source)
    if to is not None:
        result["written"] = _write(found, source, to, use_at, model_hint, plain, overwrite)
    _print(result, json_output)


def describe(found: "SteeringVectors | BlockVectors", file: Path) -> dict[str, Any]:
    """JSON-able: format, norms by site and by block output, and the metadata."""
    from steer2edit.core import BlockVectors

    blocks = found.layers if isinstance(found, BlockVectors) else found.block_outputs or {}
    sites = {} if isinstance(found, BlockVectors) else found.sites
    return {
        "file": str(file),
        "format": found.metadata.get("format", "steer2edit"),
        "sites": {
            str(site): {
                "norm": means.steering_vector.norm().item(),
                "outputs": means.steering_vector.numel(),
                "inputs": None if means.input is None else means.input.positive.numel(),
            }
            for site, means in sites.items()
        },
        "block_outputs": {
            str(layer): {"norm": means.difference.norm().item(), "outputs": means.positive.numel()}
            for layer, means in blocks.items()
        },
        "metadata": dict(found.metadata),
    }


def _write(
    found: "SteeringVectors | BlockVectors",
    file: Path,
    to: Path,
    use_at: str | None,
    model_hint: str | None,
    plain: bool,
    overwrite: bool,
) -> dict[str, Any]:
    from steer2edit.artifacts import as_vectors, load_vectors, save_vectors
    from steer2edit.artifacts.vector_files.block_files import BLOCK_SUFFIXES, save_block_vectors
    from steer2edit.core import BlockVectors

    if to.suffix in BLOCK_SUFFIXES:
        if use_at or plain:
            raise typer.BadParameter(f"--use-at and --plain are for .safetensors; {to.suffix} has block outputs.")
        blocks = found if isinstance(found, BlockVectors) else BlockVectors.of(found)
        left_out = save_block_vectors(blocks, to, model_hint=model_hint, overwrite=overwrite)
        return {"file": str(to), "layers_left_out": left_out}
    if file.is_dir():  # of a SAE: what writes to the residual stream last is its natural place
        use_at = use_at or ("mlp" if isinstance(found, BlockVectors) else None)
        taken = as_vectors(found, use_at)  # type: ignore[arg-type]
    else:
        taken = load_vectors(file, use_at)  # type: ignore[arg-type]
    save_vectors(taken, to, overwrite=overwrite, plain=plain)
    return {"file": str(to), "layers_left_out": []}


def _print(result: dict[str, Any], as_json: bool) -> None:
    from steer2edit.cli.console import print_json, print_table, say

    if as_json:
        return print_json(result)
    rows = [
        [name, f"{site['norm']:.3g}", str(site["outputs"]), "-" if site["inputs"] is None else str(site["inputs"])]
        for name, site in result["sites"].items()
    ]
    if rows:
        print_table(["site", "‖v‖", "outputs", "input means"], rows)
    rows = [[layer, f"{b['norm']:.3g}", str(b["outputs"])] for layer, b in result["block_outputs"].items()]
    if rows:
        print_table(["block output of layer", "‖v‖", "entries"], rows)
    say(f"{result['format']}: {result['file']}")
    for key, value in result["metadata"].items():
        say(f"  {key}: {f'{len(value)} of them' if isinstance(value, list) else value}")
    if written := result.get("written"):
        say(f"Written: {written['file']}")
        if written["layers_left_out"]:
            say(f"Left out, because the format has no place for it: layer {written['layers_left_out'][0]}.")
    return None
