"""Settings that several commands have: one definition each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import typer

from steer2edit.settings.declared import SETS, Checked

Behaviour = Annotated[
    str | None,
    typer.Option(
        help="What to measure: safety, truthfulness, conciseness, sycophancy, abstention, over-refusal, formality, a "
        "behaviour's folder, or a contrast file. By default what the vectors are of."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of what is random: splits of data files, and sampling.")]
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
Force = Annotated[bool, typer.Option("--force", help="Edit with vectors that the diagnosis calls noise, all the same.")]


@dataclass(frozen=True)
class Accepting(Checked):
    """What is accepted of vectors all the same."""

    allow_mismatch: AllowMismatch = False
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Accept vectors that lack some sites; those are left as they are.")
    ] = False
    force: Force = False
