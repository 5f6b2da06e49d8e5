"""Arguments and options that several commands share, and how settings become the options of a command."""

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from steer2edit.cli.console import print_json, say, saying
from steer2edit.cli.late import artifacts, engines, evaluation, models
from steer2edit.errors import InvalidValueError
from steer2edit.progress import show_progress
from steer2edit.settings import Loading, shared
from steer2edit.settings.declared import VALUES, Checked, Setting, declared, help_texts, setting_of


@dataclass(frozen=True)
class EngineOptions(Checked):
    """The engine that edits run in.

    Args:
        engine: transformers, or vllm for edits (steering in a search still runs on transformers).
        engine_args: Argument of vllm.LLM, e.g. tensor_parallel_size=2 or gpu_memory_utilization=0.5; several times.
    """

    engine: Literal["transformers", "vllm"] = "transformers"
    engine_args: Annotated[Mapping[str, Any], typer.Option("--engine-arg", metavar="NAME=VALUE"), VALUES] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine_args and self.engine != "vllm":
            given = ", ".join(f"{name}={value}" for name, value in self.engine_args.items())
            raise InvalidValueError(f"--engine-arg is for --engine vllm, got {given} with {self.engine}.")

    @contextmanager
    def running(self, model: "models.LanguageModel", *, steering: bool = True) -> "Iterator[engines.Engine]":
        """The engine, beside which vLLM needs another for `steering`; vLLM's processes end with the context."""
        if self.engine == "transformers":
            yield engines.TransformersEngine(model)
            return
        engine = engines.VllmEngine(model, engine_args=self.engine_args)
        try:
            yield engines.RoutingEngine(engine, engines.TransformersEngine(model)) if steering else engine
        finally:
            engine.close()


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
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]
FullRepliesOption = Annotated[
    bool,
    typer.Option("--full-replies", help="Show all replies of a stress run in its report, not a few, shortened."),
]


def load(name: str, loading: Loading, *like: Mapping[str, Any], **changed: Any) -> "models.LanguageModel":
    """The model, with the template arguments of the first of the artifacts `like` that has any."""
    return models.load_model(name, **{**vars(loading), **changed}, like=like)


@dataclass(frozen=True)
class Measuring(Checked):
    """On which items something is measured, and where the results go.

    Args:
        split: validation to choose on, held_out for final figures.
        out: Also write the results, with all replies, to this JSON file.
    """

    split: Literal["validation", "held_out"] = "validation"
    limit: shared.Limit = None
    out: Path | None = None
    overwrite: OverwriteOption = False

    def require_free(self) -> None:
        """Refuse a file that is there already, before anything is measured."""
        if self.out is not None:
            artifacts.require_free(self.out, overwrite=self.overwrite)

    def write(self, results: Mapping[str, Any]) -> None:
        """Write the results to the file, if there is one."""
        if self.out is not None:
            with artifacts.atomic_file(self.out, overwrite=self.overwrite) as scratch:
                text = json.dumps(results, indent=2, ensure_ascii=False)
                scratch.write_text(text, encoding="utf-8", errors="backslashreplace")
            say(f"Results: {self.out}")


@dataclass(frozen=True)
class Judging(Checked):
    """What tells refusals.

    Args:
        judge_url: OpenAI-compatible endpoint, e.g. http://localhost:8000/v1.
        judge_model: Name the endpoint knows the judge by.
        judge_prompt: Text file with the question, with {prompt} and {reply}; yes means refusal.
        judge_key_env: Environment variable that holds the key.
    """

    scorer: shared.Scorer = "strict"
    judge_url: str | None = None
    judge_model: str | None = None
    judge_prompt: Path | None = None
    judge_key_env: str | None = None

    def judge(self) -> "evaluation.judge.Judge | None":
        """The judge that the options describe, which belong together; `None` if none of them is given."""
        if not any((self.judge_url, self.judge_model, self.judge_prompt, self.judge_key_env)):
            return None
        if self.scorer != "judge":
            raise InvalidValueError(
                f"the options of a judge are given, but the scorer is {self.scorer!r}: add --scorer judge."
            )
        if not self.judge_url or not self.judge_model:
            raise InvalidValueError("a judge needs an endpoint and a model: give both --judge-url and --judge-model.")
        template = evaluation.judge.REFUSAL_QUESTION
        if self.judge_prompt is not None:
            template = evaluation.judge.read_template(self.judge_prompt)
        return evaluation.judge.Judge(self.judge_url, self.judge_model, template, self.judge_key_env)


_ARGS = re.compile(r"^Args:\n(?: .*\n?|\n)*", re.MULTILINE)
_RESUMABLE = ("search", "compare", "stress", "run", "demo")
"""Commands whose --out is a run folder."""


def listing(show: Callable[[], None], help: str, flag: str = "--list") -> Any:
    """The option that shows something, and ends."""

    def callback(wanted: bool) -> bool:
        if wanted:
            show()
            raise typer.Exit
        return False

    return typer.Option(flag, is_eager=True, callback=callback, help=help)


_JSON = inspect.Parameter(
    "json_output", inspect.Parameter.KEYWORD_ONLY, default=False,
    annotation=Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout, and nothing else there.")],
)  # fmt: skip


def expanded(command: Callable[..., Mapping[str, Any] | None]) -> Callable[..., None]:
    """The command with the fields of its settings as options, in place of each parameter that takes settings.

    What its docstring has among its `Args` is the help of options, and is left out of its own. A command says what it
    found, and returns it as an object for --json, with which nothing is said.
    """
    hints, helps = get_type_hints(command, include_extras=True), help_texts(command.__doc__)
    given = inspect.signature(command).parameters
    groups = {name: kind for name, kind in hints.items() if is_dataclass(kind) and isinstance(kind, type)}
    parameters: dict[str, inspect.Parameter] = {}
    for name in given:
        own, default = declared(groups[name]) if name in groups else {}, given[name].default
        if name in helps and (setting := setting_of(name, hints[name], default, helps)):
            own = {name: setting}
        elif name not in groups:
            keyword = inspect.Parameter.KEYWORD_ONLY
            parameters[name] = inspect.Parameter(name, keyword, default=default, annotation=hints[name])
        parameters |= {key: _option(setting) for key, setting in own.items()}
    if hints["return"] is not type(None):
        parameters[_JSON.name] = _JSON

    def call(**values: Any) -> None:
        as_json = values.pop(_JSON.name, False)
        own = {name: _made(kind, values) for name, kind in groups.items()}
        try:
            with saying(not as_json), show_progress():
                found = command(**{**{name: value for name, value in values.items() if name in given}, **own})
        except KeyboardInterrupt as error:
            said = "Nothing was left half-written; give the command again to begin anew."
            if command.__name__ in _RESUMABLE:
                said = f"What was found is in {values.get('out')}: the same command goes on from there."
            sys.stderr.write(f"\nStopped. {said}\n")
            raise typer.Exit(130) from error
        if as_json and found is not None:
            print_json(found)

    call.__name__, call.__doc__ = command.__name__, _ARGS.sub("", inspect.cleandoc(command.__doc__ or ""))
    call.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    call.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return call


def _option(setting: Setting) -> inspect.Parameter:
    default, typed = setting.default, setting.kind
    if setting.text:
        default, typed = setting.text.default, setting.text.typed
        typed = typed if default is not None else typed | None
    elif setting.choices:
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
