"""`steer2edit extract`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer2edit.cli.options import JsonOption, Loading, ModelArgument, OverwriteOption
from steer2edit.settings import ExtractOptions

if TYPE_CHECKING:
    from steer2edit.core import SteeringVectors


def extract(
    model: ModelArgument,
    options: ExtractOptions,
    loading: Loading,
    out: Annotated[Path, typer.Option(help="Where the vectors go.")] = Path("vectors.safetensors"),
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Find a behaviour's steering vectors by contrasting responses, and say whether they are any good.

    \b
    Example:
    steer2edit extract smollm2 --contrast safety --out vectors.safetensors

    A contrast file has a prompt per row and either `positive` and `negative` responses, or a `response` with a
    `label`; rows without a response are answered by the model and sorted by --labeller.
    """
    from steer2edit.artifacts import require_free, save_vectors
    from steer2edit.cli.console import print_json
    from steer2edit.cli.expert_output import tokens_by_expert
    from steer2edit.progress import show_progress
    from steer2edit.recipes import make_vectors

    _ = options.source  # none, or two, shall show before a model is loaded
    require_free(out, overwrite=overwrite)
    with show_progress():
        loaded = loading.load(model)
        vectors = make_vectors(loaded, options)
    save_vectors(vectors, out, overwrite=overwrite)
    tokens = tokens_by_expert(loaded, vectors)
    if json_output:
        found = {"metadata": dict(vectors.metadata), "diagnosis": dict(vectors.diagnosis or {})}
        return print_json({"out": str(out), **found, **({"tokens_by_expert": dict(tokens)} if tokens else {})})
    return _print(out, vectors, tokens)


def _print(out: Path, vectors: "SteeringVectors", tokens: dict[str, int]) -> None:
    from steer2edit.cli.console import print_table, say
    from steer2edit.cli.expert_output import print_expert_tokens, print_left_out

    diagnosis = vectors.diagnosis or {}
    mean, direction = diagnosis.get("mean"), vectors.metadata.get("direction")
    rows = [
        [
            name,
            f"{site['norm']:.3g}",
            _or_dash(site["split_half_cosine"]),
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
    counts = diagnosis["counts"]
    say(f"Responses: train {counts['train']}, held out {counts['held_out']}.")
    if gate := vectors.metadata.get("effects", {}).get("gate"):
        say(
            f"Gate: of a request to act on and one to stay silent on, neither of which it was made from, it moves the "
            f"first more in {gate['auroc']:.0%} of pairs ({gate['requests']} and {gate['silent']} requests)."
        )
    print_expert_tokens(tokens)
    print_left_out(vectors.metadata)
    say(f"Vectors: {out}")


def _with_interval(site: Mapping[str, Any]) -> str:
    return f"{_or_dash(site['auroc'])} [{_or_dash(site['auroc_low'])}, {_or_dash(site['auroc_high'])}]"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
