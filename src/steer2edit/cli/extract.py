"""`steer2edit extract`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from steer2edit.cli.options import (
    ChatTemplateOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    LabellerOption,
    LayoutOption,
    LimitOption,
    ModelArgument,
    OverwriteOption,
    SeedOption,
    TemplateArgOption,
    TrustOption,
    named_values,
)


def extract(
    model: ModelArgument,
    contrast: Annotated[
        str | None,
        typer.Option(
            help="Preset (safety, safety-benign, truthfulness, conciseness) or a file: "
            ".jsonl, .json, .csv, .tsv, .txt, .parquet, or hub:OWNER/NAME/FILE."
        ),
    ] = None,
    positive: Annotated[Path | None, typer.Option(help="File of positive rows, with --negative.")] = None,
    negative: Annotated[Path | None, typer.Option(help="File of negative rows, with --positive.")] = None,
    out: Annotated[Path, typer.Option(help="Where the vectors go.")] = Path("vectors.safetensors"),
    labeller: LabellerOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest generated response.")] = 24,
    temperature: Annotated[float, typer.Option(min=0, help="0 for greedy generation.")] = 0.0,
    limit: LimitOption = None,
    block_outputs: Annotated[
        bool,
        typer.Option(
            "--block-outputs", help="Measure the outputs of whole layers too: control vectors of other tools need them."
        ),
    ] = False,
    effects: Annotated[
        bool,
        typer.Option(
            "--effects",
            help="Measure what every head and neuron does to the behaviour, and what it costs: convert --importance "
            "effect makes edits of that.",
        ),
    ] = False,
    decided_by: Annotated[
        str | None,
        typer.Option(
            help="What of a response --effects are on: its first tokens, the whole answer, or its end: first, answer, "
            "end. By default what suits the preset; first for a file."
        ),
    ] = None,
    silent_on: Annotated[
        str | None,
        typer.Option(
            help="Requests on which edits made of --effects are to do nothing (convert --input-direction gated): "
            "`benign`, the built-in benign and borderline ones, which is the default for the safety presets, or a file."
        ),
    ] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    layout: LayoutOption = None,
    chat_template: ChatTemplateOption = None,
    template_arg: TemplateArgOption = None,
    trust_remote_code: TrustOption = False,
    seed: SeedOption = 0,
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
    source = _source(contrast, positive, negative)
    from steer2edit.artifacts import require_free, save_vectors
    from steer2edit.cli.expert_output import tokens_by_expert
    from steer2edit.models import Sampling, load_model
    from steer2edit.progress import show_progress
    from steer2edit.steering import extract as extract_vectors
    from steer2edit.steering import load_contrast, measure_effects

    require_free(out, overwrite=overwrite)
    with show_progress():
        loaded = load_model(
            model, dtype=dtype, device=device, layout=layout, chat_template=chat_template,
            trust_remote_code=trust_remote_code,
            template_args=named_values("--template-arg", template_arg),
        )  # fmt: skip
        sampling = Sampling(max_new_tokens, temperature, seed=seed)
        chosen = load_contrast(source, loaded, labeller=labeller, limit=limit, sampling=sampling, seed=seed)
        vectors = extract_vectors(loaded, chosen, block_outputs=block_outputs)
        if effects or decided_by or silent_on:
            vectors = measure_effects(
                loaded, vectors, chosen, decided_by=decided_by, silent_on=silent_on, seed=seed
            )  # fmt: skip
    save_vectors(vectors, out, overwrite=overwrite)
    tokens = tokens_by_expert(loaded, vectors)
    _print(out, vectors.metadata, vectors.diagnosis or {}, tokens, json_output)


def _source(contrast: str | None, positive: Path | None, negative: Path | None) -> str | tuple[Path, Path]:
    if contrast and not (positive or negative):
        return contrast
    if positive and negative and not contrast:
        return positive, negative
    raise typer.BadParameter("give either --contrast PRESET|FILE, or both --positive FILE and --negative FILE.")


def _print(
    out: Path, metadata: Mapping[str, Any], diagnosis: Mapping[str, Any], tokens: Mapping[str, int], as_json: bool
) -> None:
    from steer2edit.cli.console import print_json, print_table, say
    from steer2edit.cli.expert_output import print_expert_tokens, print_left_out

    if as_json:
        experts = {"tokens_by_expert": dict(tokens)} if tokens else {}
        return print_json({"out": str(out), "metadata": dict(metadata), "diagnosis": dict(diagnosis), **experts})
    sites = diagnosis["sites"]
    rows = [
        [
            name,
            f"{site['norm']:.3g}",
            _or_dash(site["split_half_cosine"]),
            f"{_or_dash(site['auroc'])} [{_or_dash(site['auroc_low'])}, {_or_dash(site['auroc_high'])}]",
            "NOISE" if site["noise"] else "",
        ]
        for name, site in sites.items()
    ]
    print_table(["site", "‖v‖", "split-half cosine", "held-out AUROC", ""], rows)
    say(diagnosis["summary"], style="bold")
    counts = diagnosis["counts"]
    say(f"Responses: train {counts['train']}, held out {counts['held_out']}.")
    if gate := metadata.get("effects", {}).get("gate"):
        say(
            f"Gate: of a request to act on and one to stay silent on, neither of which it was made from, it moves the "
            f"first more in {gate['auroc']:.0%} of pairs ({gate['requests']} and {gate['silent']} requests)."
        )
    print_expert_tokens(tokens)
    print_left_out(metadata)
    say(f"Vectors: {out}")
    return None


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
