"""What a user decides of an extraction and of a conversion."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from steer2edit.errors import InvalidValueError
from steer2edit.settings.declared import Checked, OneOf, Text, read_number_or_off
from steer2edit.settings.shared import Labeller, Limit, Seed

OFF = Text(read_number_or_off, default="off")


@dataclass(frozen=True)
class ExtractOptions(Checked):
    """What vectors are made from; every option is described by its help text.

    Raises:
        InvalidValueError: a value is out of range.
    """

    contrast: Annotated[
        str | None,
        typer.Option(
            help="A behaviour (safety, safety-benign, truthfulness, conciseness, sycophancy, abstention, over-refusal, "
            "formality), a behaviour's folder, or a file: .jsonl, .json, .csv, .tsv, .txt, .parquet, or "
            "hub:OWNER/NAME/FILE."
        ),
    ] = None
    positive: Annotated[Path | None, typer.Option(help="File of positive rows, with --negative.")] = None
    negative: Annotated[Path | None, typer.Option(help="File of negative rows, with --positive.")] = None
    labeller: Labeller = None
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest generated response.")] = 24
    temperature: Annotated[float, typer.Option(min=0, help="0 for greedy generation.")] = 0.0
    limit: Limit = None
    direction: Annotated[
        str,
        typer.Option(
            help="What v is: mean, the paper's difference of class means; or, beyond it, pca (of pairs), probe "
            "(logistic regression) or lda (whitened difference). The diagnosis has the mean's beside."
        ),
        OneOf(("mean", "pca", "probe", "lda")),
    ] = "mean"
    span: Annotated[
        str,
        typer.Option(
            metavar="response|thought|answer|N", help="What of a response is averaged; N for its first N tokens."
        ),
    ] = "response"
    block_outputs: Annotated[
        bool,
        typer.Option(
            "--block-outputs", help="Measure the outputs of whole layers too: control vectors of other tools need them."
        ),
    ] = False
    effects: Annotated[
        bool,
        typer.Option(
            "--effects",
            help="Measure what every head and neuron does to the behaviour, and what it costs: convert --importance "
            "effect makes edits of that.",
        ),
    ] = False
    decided_by: Annotated[
        str | None,
        typer.Option(
            help="What of a response --effects are on: its first tokens, the whole answer, or its end: first, answer, "
            "end. By default what suits the behaviour; first for a file."
        ),
    ] = None
    silent_on: Annotated[
        str | None,
        typer.Option(
            help="Requests on which edits made of --effects are to do nothing (convert --input-direction gated): "
            "`benign`, the built-in benign and borderline ones, which is the default for safety, or a file."
        ),
    ] = None
    seed: Seed = 0

    @property
    def source(self) -> str | tuple[Path, Path]:
        """The preset or file, or the two files.

        Raises:
            InvalidValueError: there are two sources, or none.
        """
        if self.contrast and not (self.positive or self.negative):
            return self.contrast
        if self.contrast or not (self.positive and self.negative):
            raise InvalidValueError(
                "give either --contrast BEHAVIOUR|FOLDER|FILE, or both --positive FILE and --negative FILE."
            )  # fmt: skip
        return self.positive, self.negative


@dataclass(frozen=True)
class ConvertOptions(Checked):
    """What edit is made; every option is described by its help text.

    Raises:
        InvalidValueError: a value is out of range, or an option lacks another that it needs.
    """

    rho_attn: Annotated[
        float | None, typer.Option(help="Budget rho > 0 of attention heads, or off. Larger means weaker."), OFF
    ] = None
    rho_mlp: Annotated[
        float | None, typer.Option(help="Budget rho > 0 of MLP neurons, or off. Larger means weaker."), OFF
    ] = None
    alpha: Annotated[
        float | None,
        typer.Option(
            help="l1 share alpha in [0, 1). Larger means sparser. By default 0.5, and 0 for edits of effects."
        ),
    ] = None
    max_shift: Annotated[
        float | None,
        typer.Option(
            help="Beyond the paper: no site's edit moves its mean output further than steering at this strength. "
            "Off by default."
        ),
    ] = None
    spare: Annotated[
        str | None,
        typer.Option(
            help="Beyond the paper: make the edit do nothing, on average, to replies to benign requests: `benign` "
            "(built-in requests) or a file of prompts."
        ),
    ] = None
    gain: Annotated[float, typer.Option(help="With --spare: multiplies what sparing leaves of the edit.")] = 1.0
    input_direction: Annotated[
        str,
        typer.Option(
            help="Rule for k: sensitivity (the paper's), mean, svd; or, beyond it, gated (with --importance effect)."
        ),
    ] = "sensitivity"
    importance: Annotated[
        str, typer.Option(help="Rule for g: cosine (the paper's), dot; or, beyond it, effect (extract --effects).")
    ] = "cosine"
    magnitude: Annotated[str, typer.Option(help="Rule for lambda: elastic-net (the paper's), top-k, ridge.")] = (
        "elastic-net"
    )
    kl: Annotated[
        float | None,
        typer.Option(
            help="Scale the edit so that it drifts this far from the base on benign requests, KL in nats per token. "
            "By default 0.03 for edits of effects, and not at all otherwise."
        ),
    ] = None
    min_expert_tokens: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Leave out experts of a mixture that were given fewer tokens in the contrast set; by default 32.",
        ),
    ] = None
    contrast: Annotated[
        str | None,
        typer.Option(help="Behaviour, folder or file to measure input means on, for vectors that were made elsewhere."),
    ] = None
    labeller: Labeller = None
    limit: Limit = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gain != 1.0 and self.spare is None:
            raise InvalidValueError(
                f"--gain {self.gain:g} multiplies what sparing leaves of the edit: give --spare too."
            )
