"""Settings that several commands have, and what a user decides of an extraction, a conversion and a refit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from steer2edit.errors import InvalidValueError
from steer2edit.settings.declared import SETS, VALUES, Checked, Text, read_number_or_off

Behaviour = Annotated[
    str | None,
    typer.Option(
        help="What to measure: safety, truthfulness, conciseness, sycophancy, abstention, over-refusal, formality, a "
        "behaviour's folder, or a contrast file. By default what the vectors are of."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of what is random: splits of data files, and sampling.")]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Use at most this many prompts of every set. Of the 300 built-in held-out requests of safety, 96 are used "
        "unless this asks for more.",
    ),
]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="Longest reply.")]
Labeller = Annotated[
    str | None,
    typer.Option(
        help="How generated responses get their label: refusal, refusal-official, length, reference, or your own "
        "function(prompt, response) as module:function."
    ),
]
ScorerName = Literal["strict", "official", "judge"]
SCORERS: tuple[ScorerName, ...] = get_args(ScorerName)
Scorer = Annotated[ScorerName, typer.Option(help="What tells refusals: strict, official (phrases), or judge.")]
Data = Annotated[
    Mapping[str, str],
    typer.Option(
        metavar="SET=FILE",
        help="Your own validation and held-out items for a set of the behaviour: harmful, benign, borderline (safety), "
        "questions (truthfulness), requests (conciseness), ...; several times. FILE or hub:OWNER/NAME/FILE, in the "
        "formats of `evaluate --list`.",
    ),
    SETS,
]
AllowMismatch = Annotated[
    bool, typer.Option("--allow-mismatch", help="Accept an artifact made on a model with another fingerprint.")
]
Device = Annotated[
    str,
    typer.Option(help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps, balanced (all devices), or disk."),
]
Robust = Literal["wordings", "tuned"] | None
Force = Annotated[bool, typer.Option("--force", help="Edit with vectors that the diagnosis calls noise, all the same.")]


@dataclass(frozen=True)
class Accepting(Checked):
    """What is accepted of vectors all the same.

    Args:
        allow_missing: Accept vectors that lack some sites; those are left as they are.
    """

    allow_mismatch: AllowMismatch = False
    allow_missing: bool = False
    force: Force = False


@dataclass(frozen=True)
class Reading(Checked):
    """How a checkpoint's files are understood.

    Args:
        layout: Layout file for an architecture that is not known (docs/add-a-model.md).
        trust_remote_code: Run Python code that the checkpoint brings. Read it first.
    """

    layout: Path | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Placing(Checked):
    """In what numbers and where a model runs.

    Args:
        dtype: auto (the checkpoint's own), float32, bfloat16 or float16.
    """

    dtype: str = "auto"
    device: Device = "auto"


@dataclass(frozen=True)
class Loading(Reading, Placing):
    """How a model is loaded, and how prompts are put to it.

    Args:
        chat_template: Jinja file to use as chat template (or a JSON file that has one), or `none` for plain text.
        template_args: Argument of the chat template, e.g. enable_thinking=false; several times. A step that goes on
            from vectors or an edit uses theirs.
        system: System message of every conversation that has none; passed on as template arguments are.
    """

    chat_template: str | None = None
    template_args: Annotated[Mapping[str, Any], typer.Option("--template-arg", metavar="NAME=VALUE"), VALUES] = field(
        default_factory=dict
    )
    system: str | None = None


OFF = Text(read_number_or_off, default="off")


@dataclass(frozen=True)
class ExtractOptions(Checked):
    """What vectors are made from.

    Args:
        contrast: A behaviour (safety, safety-benign, truthfulness, conciseness, sycophancy, abstention, over-refusal,
            formality), a behaviour's folder, or a file: .jsonl, .json, .csv, .tsv, .txt, .parquet, or
            hub:OWNER/NAME/FILE.
        positive: File of positive rows, with --negative.
        negative: File of negative rows, with --positive.
        max_new_tokens: Longest generated response.
        temperature: 0 for greedy generation.
        direction: What v is: mean, the paper's difference of class means; or, beyond it, pca (of pairs), probe
            (logistic regression) or lda (whitened difference). The diagnosis has the mean's beside.
        span: What of a response is averaged; N for its first N tokens.
        block_outputs: Measure the outputs of whole layers too: control vectors of other tools need them.
        effects: Measure what every head and neuron does to the behaviour, and what it costs: convert --importance
            effect makes edits of that.
        decided_by: What of a response --effects are on: its first tokens, the whole answer, or its end: first, answer,
            end. By default what suits the behaviour; first for a file.
        silent_on: Requests on which edits made of --effects are to do nothing (convert --input-direction gated):
            `benign`, the built-in benign and borderline ones, which is the default for safety, or a file.
        robust: wordings: take effects on other wordings of the requests and behind begun replies too, in twice as many
            steps, so that the edit holds in these; takes twice as long, and is for behaviours that first tokens decide.
            tuned: pool the effects over the model as it is and a copy after a light fine-tune on harmless answers;
            more of the edit survives another fine-tune, and less is done without one.
    """

    contrast: str | None = None
    positive: Path | None = None
    negative: Path | None = None
    labeller: Labeller = None
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 24
    temperature: Annotated[float, typer.Option(min=0)] = 0.0
    limit: Limit = None
    direction: Literal["mean", "pca", "probe", "lda"] = "mean"
    span: Annotated[str, typer.Option(metavar="response|thought|answer|N")] = "response"
    block_outputs: bool = False
    effects: bool = False
    decided_by: Literal["first", "answer", "end"] | None = None
    silent_on: str | None = None
    robust: Robust = None
    seed: Seed = 0

    @property
    def source(self) -> str | tuple[Path, Path]:
        """The preset or file, or the two files; an InvalidValueError for two sources, or none."""
        if self.contrast and not (self.positive or self.negative):
            return self.contrast
        if self.contrast or not (self.positive and self.negative):
            raise InvalidValueError(
                "give either --contrast BEHAVIOUR|FOLDER|FILE, or both --positive FILE and --negative FILE."
            )  # fmt: skip
        return self.positive, self.negative


@dataclass(frozen=True)
class ConvertOptions(Checked):
    """What edit is made.

    Args:
        rho_attn: Budget rho > 0 of attention heads, or off. Larger means weaker.
        rho_mlp: Budget rho > 0 of MLP neurons, or off. Larger means weaker.
        alpha: l1 share alpha in [0, 1). Larger means sparser. By default 0.5, and 0 for edits of effects.
        input_direction: Rule for k: sensitivity (the paper's), mean, svd; or, beyond it, gated (with --importance
            effect).
        importance: Rule for g: cosine (the paper's), dot; or, beyond it, effect (extract --effects).
        magnitude: Rule for lambda: elastic-net (the paper's), top-k, ridge.
        kl: Scale the edit so that it drifts this far from the base on benign requests, KL in nats per token. By default
            0.03 for edits of effects (less where extract ended at less), and not at all otherwise.
        min_expert_tokens: Leave out experts of a mixture that were given fewer tokens in the contrast set; by default
            32.
        contrast: Behaviour, folder or file to measure input means on, for vectors that were made elsewhere.
    """

    rho_attn: Annotated[float | None, OFF] = None
    rho_mlp: Annotated[float | None, OFF] = None
    alpha: float | None = None
    input_direction: str = "sensitivity"
    importance: str = "cosine"
    magnitude: str = "elastic-net"
    kl: float | None = None
    min_expert_tokens: Annotated[int | None, typer.Option(min=0)] = None
    contrast: str | None = None
    labeller: Labeller = None
    limit: Limit = None
    seed: Seed = 0


@dataclass(frozen=True)
class RefitOptions(Checked):
    """What is changed of an edit's own recipe.

    Args:
        contrast: What the vectors are made from, where the edit does not say or its file has moved.
    """

    contrast: str | None = None
    limit: Limit = None
    force: Force = False
