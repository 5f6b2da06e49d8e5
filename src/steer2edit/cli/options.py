"""Arguments and options that several commands share: one definition each."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A Hub id, a local directory, or smollm2 (embedded, works offline).")
]
VectorsArgument = Annotated[
    Path,
    typer.Argument(
        metavar="VECTORS", help="Steering vectors: a file of `extract`, any safetensors with L<layer>.attn|mlp keys, "
        "or the official Steer2Edit directions .pt."
    ),
]  # fmt: skip
EditArgument = Annotated[Path, typer.Argument(metavar="EDIT_DIR", help="An edit directory written by `convert`.")]
DtypeOption = Annotated[
    str, typer.Option(help="auto (the checkpoint's own), float32, bfloat16 or float16.", show_default=True)
]
DeviceOption = Annotated[
    str, typer.Option(help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps, or balanced over all devices.")
]
LayoutOption = Annotated[
    Path | None, typer.Option(help="Layout file for an architecture that is not known (docs/add-a-model.md).")
]
ChatTemplateOption = Annotated[
    str | None,
    typer.Option(help="Jinja file to use as chat template (or a JSON file that has one), or `none` for plain text."),
]
TemplateArgOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Argument of the chat template, e.g. enable_thinking=false; several times. A step that goes on from "
        "vectors or an edit uses theirs.",
    ),
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that the checkpoint brings. Read it first.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of what is random: splits of data files, and sampling.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout, and nothing else there.")]
AllowMismatchOption = Annotated[
    bool, typer.Option("--allow-mismatch", help="Accept an artifact made on a model with another fingerprint.")
]
AllowMissingOption = Annotated[
    bool, typer.Option("--allow-missing", help="Accept vectors that lack some sites; those are left as they are.")
]
BehaviourOption = Annotated[
    str | None,
    typer.Option(help="What to measure: safety, truthfulness or conciseness. By default what the vectors are of."),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Edit with vectors that the diagnosis calls noise, all the same.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]
LimitOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Use at most this many prompts of every set. Of the 300 built-in held-out requests of safety, 96 are used "
        "unless this asks for more.",
    ),
]
LabellerOption = Annotated[
    str | None,
    typer.Option(
        help="How generated responses get their label: refusal, refusal-official, length, reference, or your own "
        "function(prompt, response) as module:function."
    ),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SET=FILE",
        help="Your own validation and held-out items: harmful, benign, borderline (safety), questions (truthfulness), "
        "requests (conciseness); several times. FILE or hub:OWNER/NAME/FILE, in the formats of `evaluate --list`.",
    ),
]
JudgeUrlOption = Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint, e.g. http://localhost:8000/v1.")]
JudgeModelOption = Annotated[str | None, typer.Option(help="Name the endpoint knows the judge by.")]
JudgePromptOption = Annotated[
    Path | None, typer.Option(help="Text file with the question, with {prompt} and {reply}; yes means refusal.")
]
JudgeKeyOption = Annotated[str | None, typer.Option(help="Environment variable that holds the key.")]
FullRepliesOption = Annotated[
    bool,
    typer.Option("--full-replies", help="Show all replies of a stress run in its report, not a few, shortened."),
]


def named_values(option: str, given: Sequence[str] | None) -> dict[str, Any]:
    """`NAME=VALUE` arguments by name, values as JSON where they are.

    Raises:
        typer.BadParameter: one is something else.
    """
    values: dict[str, Any] = {}
    for text in given or ():
        name, found, value = text.partition("=")
        if not name or not found:
            raise typer.BadParameter(f"{option} takes NAME=VALUE, got {text!r}.")
        try:
            values[name] = json.loads(value, parse_constant=int)  # NaN is no JSON
        except ValueError:
            values[name] = value
    return values


def named_sets(given: Sequence[str]) -> dict[str, str]:
    """`harmful=advbench.csv` → {"harmful": "advbench.csv"}.

    Raises:
        typer.BadParameter: one is something else.
    """
    pairs = [text.partition("=") for text in given]
    if wrong := [text for text, (name, _, source) in zip(given, pairs, strict=True) if not (name and source)]:
        raise typer.BadParameter(f"--data takes SET=FILE, as in harmful=advbench.csv, got {wrong[0]!r}.")
    return {name: source for name, _, source in pairs}
