"""Which engine runs a model, as asked for on the command line."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer2edit.cli.options import named_values

if TYPE_CHECKING:
    from steer2edit.engines import Engine
    from steer2edit.models import LanguageModel

ENGINES = ("transformers", "vllm")
EngineArgOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Argument of vllm.LLM, e.g. tensor_parallel_size=2 or gpu_memory_utilization=0.5; several times.",
    ),
]


def parse_engine(engine: str, given: Sequence[str], *, steering: bool = False) -> dict[str, Any]:
    """The engine's arguments by name, values as JSON where they are.

    Raises:
        InvalidValueError: an unknown engine, or something that it does not do.
    """
    from steer2edit.errors import InvalidValueError, did_you_mean

    if engine not in ENGINES:
        raise InvalidValueError(f"unknown engine {engine!r}. {did_you_mean(engine, ENGINES)}")
    if engine == "vllm" and steering:
        raise InvalidValueError("vLLM runs edits only: leave --steer out, or use --engine transformers.")
    if given and engine != "vllm":
        raise InvalidValueError(f"--engine-arg is for --engine vllm, got {', '.join(given)} with {engine}.")
    return named_values("--engine-arg", given)


@contextmanager
def running_engine(name: str, model: "LanguageModel", engine_args: Mapping[str, Any]) -> "Iterator[Engine]":
    """The engine; vLLM's processes end with the context."""
    if name == "transformers":
        from steer2edit.engines import TransformersEngine

        yield TransformersEngine(model)
        return
    from steer2edit.engines.vllm import VllmEngine

    engine = VllmEngine(model, engine_args=engine_args)
    try:
        yield engine
    finally:
        engine.close()
