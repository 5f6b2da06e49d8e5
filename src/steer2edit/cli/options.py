"""Arguments and options that several commands share, and how settings become the options of a command."""

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from steer2edit.errors import InvalidValueError
from steer2edit.settings import shared
from steer2edit.settings.declared import VALUES, Checked, OneOf, Setting, declared

if TYPE_CHECKING:
    from steer2edit.evaluation.judge import Judge
    from steer2edit.models import LanguageModel

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A Hub id, a local directory, a .gguf file, or smollm2 (embedded, works offline)."
    ),
]
VectorsArgument = Annotated[
    Path,
    typer.Argument(
        metavar="VECTORS", help="Steering vectors: a file of `extract`, any safetensors with L<layer>.attn|mlp keys, "
        "or the official Steer2Edit directions .pt."
    ),
]  # fmt: skip
EditArgument = Annotated[Path, typer.Argument(metavar="EDIT_DIR", help="An edit directory written by `convert`.")]
DeviceOption = Annotated[
    str,
    typer.Option(help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps, balanced (all devices), or disk."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout, and nothing else there.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]
FullRepliesOption = Annotated[
    bool,
    typer.Option("--full-replies", help="Show all replies of a stress run in its report, not a few, shortened."),
]


LayoutOption = Annotated[
    Path | None, typer.Option(help="Layout file for an architecture that is not known (docs/add-a-model.md).")
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that the checkpoint brings. Read it first.")
]
DtypeOption = Annotated[
    str, typer.Option(help="auto (the checkpoint's own), float32, bfloat16 or float16.", show_default=True)
]


@dataclass(frozen=True)
class Reading(Checked):
    """How a checkpoint's files are understood."""

    layout: LayoutOption = None
    trust_remote_code: TrustOption = False


@dataclass(frozen=True)
class Placing(Checked):
    """In what numbers and where a model runs."""

    dtype: DtypeOption = "auto"
    device: DeviceOption = "auto"


@dataclass(frozen=True)
class PlainLoading(Reading, Placing):
    """How a model is loaded."""

    def load(self, name: str, *like: Mapping[str, Any], **changed: Any) -> "LanguageModel":
        """The model, with the template arguments of the first of the artifacts `like` that has any."""
        from steer2edit.models import load_model

        return load_model(name, **{**vars(self), **changed}, like=like)


@dataclass(frozen=True)
class Loading(PlainLoading):
    """How a model is loaded, and how prompts are put to it."""

    chat_template: Annotated[
        str | None,
        typer.Option(
            help="Jinja file to use as chat template (or a JSON file that has one), or `none` for plain text."
        ),
    ] = None
    template_args: Annotated[
        Mapping[str, Any],
        typer.Option(
            "--template-arg",
            metavar="NAME=VALUE",
            help="Argument of the chat template, e.g. enable_thinking=false; several times. A step that goes on from "
            "vectors or an edit uses theirs.",
        ),
        VALUES,
    ] = field(default_factory=dict)
    system: Annotated[
        str | None,
        typer.Option(help="System message of every conversation that has none; passed on as template arguments are."),
    ] = None


@dataclass(frozen=True)
class Measuring(Checked):
    """On which items something is measured, and where the results go."""

    split: Annotated[
        Literal["validation", "held_out"],
        typer.Option(help="validation to choose on, held_out for final figures."),
        OneOf(("validation", "held_out")),
    ] = "validation"
    limit: shared.Limit = None
    out: Annotated[Path | None, typer.Option(help="Also write the results, with all replies, to this JSON file.")] = (
        None
    )
    overwrite: OverwriteOption = False
    json_output: JsonOption = False

    def require_free(self) -> None:
        """Refuse a file that is there already, before anything is measured."""
        from steer2edit.artifacts import require_free

        if self.out is not None:
            require_free(self.out, overwrite=self.overwrite)

    def hand_out(self, results: Mapping[str, Any], show: Callable[[], None]) -> None:
        """Write the results to the file, if there is one, and print them as JSON or by `show`."""
        from steer2edit.artifacts import atomic_file
        from steer2edit.cli.console import print_json, say

        if self.out is not None:
            with atomic_file(self.out, overwrite=self.overwrite) as scratch:
                text = json.dumps(results, indent=2, ensure_ascii=False)
                scratch.write_text(text, encoding="utf-8", errors="backslashreplace")
        if self.json_output:
            return print_json(results)
        show()
        if self.out is not None:
            say(f"Results: {self.out}")
        return None


@dataclass(frozen=True)
class Judging(Checked):
    """What tells refusals."""

    scorer: Annotated[str, typer.Option(help="What tells refusals: strict, official (phrases), or judge.")] = "strict"
    judge_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint, e.g. http://localhost:8000/v1.")
    ] = None
    judge_model: Annotated[str | None, typer.Option(help="Name the endpoint knows the judge by.")] = None
    judge_prompt: Annotated[
        Path | None, typer.Option(help="Text file with the question, with {prompt} and {reply}; yes means refusal.")
    ] = None
    judge_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the key.")] = None

    def judge(self) -> "Judge | None":
        """The judge that the options describe; `None` if none of them is given.

        Raises:
            InvalidValueError: options of a judge without that scorer, or without endpoint or model.
            DataError: the file of the question cannot be read.
        """
        from steer2edit.evaluation.judge import Judge
        from steer2edit.evaluation.judge_prompt import REFUSAL_QUESTION, read_template

        if not any((self.judge_url, self.judge_model, self.judge_prompt, self.judge_key_env)):
            return None
        if self.scorer != "judge":
            raise InvalidValueError(
                f"the options of a judge are given, but the scorer is {self.scorer!r}: add --scorer judge."
            )
        if not self.judge_url or not self.judge_model:
            raise InvalidValueError("a judge needs an endpoint and a model: give both --judge-url and --judge-model.")
        template = REFUSAL_QUESTION if self.judge_prompt is None else read_template(self.judge_prompt)
        return Judge(self.judge_url, self.judge_model, template, api_key_variable=self.judge_key_env)


RESUMABLE = ("search", "compare", "stress", "run", "demo")
"""Commands whose --out is a run folder."""


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of its settings as options, in place of each parameter that takes settings."""
    hints = get_type_hints(command, include_extras=True)
    given = inspect.signature(command).parameters
    groups = {name: kind for name, kind in hints.items() if is_dataclass(kind) and isinstance(kind, type)}
    parameters = {
        parameter.name: parameter
        for name in given
        for parameter in (_options_of(groups[name]) if name in groups else [_keyword(given[name], hints[name])])
    }

    def call(**values: Any) -> None:
        own = {name: _made(kind, values) for name, kind in groups.items()}
        try:
            command(**{**{name: value for name, value in values.items() if name in given}, **own})
        except KeyboardInterrupt as error:
            sys.stderr.write(_interrupted(command.__name__, values.get("out")))
            raise typer.Exit(130) from error

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    call.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return call


def _interrupted(command: str, out: Path | None) -> str:
    """How to go on with a command that was stopped."""
    if command in RESUMABLE:
        return f"\nStopped. What was found is in {out}: the same command goes on from there.\n"
    return "\nStopped. Nothing was left half-written; give the command again to begin anew.\n"


def _keyword(parameter: inspect.Parameter, hint: Any) -> inspect.Parameter:
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hint)


def _options_of(kind: type) -> list[inspect.Parameter]:
    defaults = {one.name: one.default if one.default_factory is MISSING else None for one in fields(kind)}  # type: ignore[arg-type]
    return [_option(setting, defaults[name]) for name, setting in declared(kind).items()]


def _option(setting: Setting, default: Any) -> inspect.Parameter:
    typed = setting.kind
    if setting.text:
        default, typed = setting.text.default, setting.text.typed
        typed = typed if default is not None else typed | None
    elif setting.choice:
        typed = str | None if setting.optional else str
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[typed, setting.option]
    )


def _made(kind: type, values: Mapping[str, Any]) -> Any:
    """The settings that were typed."""
    made = {}
    for name, setting in declared(kind).items():
        value = values[name]
        if setting.text:
            if not value:
                continue  # not typed: the field's own default
            value = setting.text.read(setting.flag, value)
        made[name] = value
    return kind(**made)
