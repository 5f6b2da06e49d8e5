"""Commands on steering vectors: `extract`, `vectors`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from steer2edit.cli.console import print_table, say
from steer2edit.cli.edit_output import print_left_out
from steer2edit.cli.late import artifacts, core, editing, recipes
from steer2edit.cli.options import ModelArgument, OverwriteOption, load
from steer2edit.settings import ExtractOptions, Loading


def extract(
    model: ModelArgument,
    options: ExtractOptions,
    loading: Loading,
    out: Annotated[Path, typer.Option(help="Where the vectors go.")] = Path("vectors.safetensors"),
    overwrite: OverwriteOption = False,
) -> dict[str, Any]:
    """Find a behaviour's steering vectors by contrasting responses, and say whether they are any good.

    \b
    Example:
    steer2edit extract smollm2 --contrast safety --out vectors.safetensors

    A contrast file has a prompt per row and either `positive` and `negative` responses, or a `response` with a
    `label`; rows without a response are answered by the model and sorted by --labeller.
    """
    _ = options.source  # none, or two, shall show before a model is loaded
    artifacts.require_free(out, overwrite=overwrite)
    loaded = load(model, loading)
    vectors = recipes.making.make_vectors(loaded, options)
    artifacts.save_vectors(vectors, out, overwrite=overwrite)
    tokens: dict[str, int] = {}  # that each expert was given over both classes, by its name, `L3.E5`
    for site, means in vectors.sites.items():
        if (sizes := loaded.sites[site].sizes) and means.seen is not None:
            tokens |= {f"L{site.layer}.{name}": n for name, n in zip(sizes.names, means.seen, strict=True)}
    _print_extracted(out, vectors, tokens)
    found = {"out": str(out), "metadata": dict(vectors.metadata), "diagnosis": dict(vectors.diagnosis or {})}
    return {**found, "tokens_by_expert": tokens} if tokens else found


def _print_extracted(out: Path, vectors: "core.SteeringVectors", tokens: dict[str, int]) -> None:
    diagnosis = vectors.diagnosis or {}
    mean, direction = diagnosis.get("mean"), vectors.metadata.get("direction")
    rows = [
        [
            name,
            f"{site['norm']:.3g}",
            "-" if site["split_half_cosine"] is None else f"{site['split_half_cosine']:.2f}",
            _with_interval(site),
            *([_with_interval(mean["sites"][name])] if mean else []),
            "NOISE" if site["noise"] else "",
        ]
        for name, site in diagnosis["sites"].items()
    ]
    beside = ["the mean's AUROC"] if mean else []
    print_table(["site", "‖v‖", "split-half cosine", "held-out AUROC", *beside, ""], rows)
    say(f"{direction}: {diagnosis['summary']}" if mean else diagnosis["summary"], style="bold")
    if mean:
        say(f"mean: {mean['summary']}")
    classes = (diagnosis["counts"]["train"], diagnosis["counts"]["held_out"])
    made, unseen = (f"{of['positive']} positive and {of['negative']} negative" for of in classes)
    say(f"Made of {made} responses; {unseen} held out.")
    if gate := vectors.metadata.get("effects", {}).get("gate"):
        say(
            f"Gate: of a request to act on and one to stay silent on, neither of which it was made from, it moves the "
            f"first more in {gate['auroc']:.0%} of pairs ({gate['requests']} and {gate['silent']} requests)."
        )
    if tokens:
        fewest, too_few = min(tokens, key=tokens.__getitem__), sum(n < editing.MIN_TOKENS for n in tokens.values())
        layers = artifacts.left_out.counted(len({name.partition(".")[0] for name in tokens}), "layer")
        verdict = f"{too_few} were given fewer than {editing.MIN_TOKENS}, and convert leaves those out"
        verdict = verdict if too_few else "all can be edited"
        say(f"Experts: {len(tokens)} in {layers}; fewest tokens: {tokens[fewest]} ({fewest}); {verdict}.")
    print_left_out(vectors.metadata)
    say(f"Vectors: {out}")


def _with_interval(site: Mapping[str, Any]) -> str:
    values = [site[name] for name in ("auroc", "auroc_low", "auroc_high")]
    auroc, low, high = ("-" if value is None else f"{value:.2f}" for value in values)
    return auroc if values[0] is None else f"{auroc} [{low}, {high}]"


def vectors(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="VECTORS",
            help="A file of `extract`; safetensors or .pt with L<layer>.attn|mlp keys; the official Steer2Edit "
            "directions .pt; lm-eval's steered .pt; a GGUF control vector; a CAST .svec; a Neuronpedia .json.",
        ),
    ] = None,
    from_sae: Annotated[Path | None, typer.Option(metavar="DIR")] = None,
    feature: Annotated[int | None, typer.Option(help="Of --from-sae: the feature whose decoder row is v.")] = None,
    to: Path | None = None,
    use_at: str | None = None,
    model_hint: str | None = None,
    plain: bool = False,
    overwrite: OverwriteOption = False,
) -> dict[str, Any]:
    """Show what a file of steering vectors holds, and convert it between formats where they can hold the same.

    \b
    Example:
    steer2edit vectors happy.gguf --use-at mlp --to happy.safetensors

    A feature of a sparse autoencoder: --from-sae DIR --feature 1234 --to feature.safetensors. One of the residual
    stream is used at the MLP that writes there, unless --use-at says otherwise.

    Control vectors and .svec files have one direction per block output; steer2edit works with one per projection.
    Neither is turned into the other silently: extract with --block-outputs to get both, or give --use-at.

    Args:
        from_sae: A SAELens folder (cfg.json, sae_weights.safetensors), with --feature.
        to: Also write them there: .safetensors, .gguf (control vector) or .svec.
        use_at: For directions of block outputs, to .safetensors: the projections of the same layer that take them as
            their vectors: mlp, attn or both.
        model_hint: Model type to name in .gguf and .svec, e.g. llama; from the file if it knows.
        plain: To .safetensors: only v and the input means, for other programs.
    """
    if to is None and (use_at or plain or model_hint):
        raise typer.BadParameter("--use-at, --plain and --model-hint are about what is written: give --to FILE too.")
    if (file is None) == (from_sae is None) or (from_sae is None) != (feature is None):
        raise typer.BadParameter("give a file of vectors, or --from-sae DIR with --feature NUMBER.")

    from steer2edit.artifacts.vector_files.foreign import read_sae_feature

    source = file or from_sae
    assert source is not None
    found = artifacts.read_vectors(source) if feature is None else read_sae_feature(source, feature)
    result = _described(found, source)
    if to is not None:
        result["written"] = _write(found, source, to, use_at, model_hint, plain, overwrite)
    _print_vectors(result)
    return result


def _described(found: "core.SteeringVectors", file: Path) -> dict[str, Any]:
    """JSON-able: format, norms by site and by block output, and the metadata."""
    return {
        "file": str(file),
        "format": found.metadata.get("format", "steer2edit"),
        "sites": {
            str(site): {
                "norm": means.steering_vector.norm().item(),
                "outputs": means.steering_vector.numel(),
                "inputs": None if means.input is None else means.input.positive.numel(),
            }
            for site, means in found.sites.items()
        },
        "block_outputs": {
            str(layer): {"norm": means.difference.norm().item(), "outputs": means.positive.numel()}
            for layer, means in (found.block_outputs or {}).items()
        },
        "metadata": dict(found.metadata),
    }


def _write(
    found: "core.SteeringVectors", file: Path, to: Path, use_at: str | None,
    model_hint: str | None, plain: bool, overwrite: bool,
) -> dict[str, Any]:  # fmt: skip
    from steer2edit.artifacts.vector_files.block_files import BLOCK_SUFFIXES

    if to.suffix in BLOCK_SUFFIXES:
        if use_at or plain:
            raise typer.BadParameter(f"--use-at and --plain are for .safetensors; {to.suffix} has block outputs.")
        left_out = artifacts.save_block_vectors(found, to, model_hint=model_hint, overwrite=overwrite)
        return {"file": str(to), "layers_left_out": left_out}
    if file.is_dir() and not found.sites:  # of a SAE: what writes to the residual stream last
        use_at = use_at or "mlp"
    taken = artifacts.load_vectors(found if file.is_dir() else file, use_at)  # type: ignore[arg-type]
    artifacts.save_vectors(taken, to, overwrite=overwrite, plain=plain)
    return {"file": str(to), "layers_left_out": []}


def _print_vectors(result: dict[str, Any]) -> None:
    rows = [
        [name, f"{own['norm']:.3g}", str(own["outputs"]), str(own["inputs"] or "-")]
        for name, own in result["sites"].items()
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
