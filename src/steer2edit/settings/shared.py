"""Settings that several commands have: one definition each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from steer2edit.settings.declared import SETS, VALUES, Checked

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
Robust = Literal["tuned"] | None
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
class PlainLoading(Reading, Placing):
    """How a model is loaded."""


@dataclass(frozen=True)
class Loading(PlainLoading):
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
