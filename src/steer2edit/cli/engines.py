"""Which engine runs a model, as asked for on the command line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer2edit.errors import InvalidValueError
from steer2edit.settings.declared import VALUES, Checked, OneOf

if TYPE_CHECKING:
    from steer2edit.engines import Engine
    from steer2edit.models import LanguageModel

EngineArgs = Annotated[
    Mapping[str, Any],
    typer.Option(
        "--engine-arg",
        metavar="NAME=VALUE",
        help="Argument of vllm.LLM, e.g. tensor_parallel_size=2 or gpu_memory_utilization=0.5; several times.",
    ),
    VALUES,
]


@dataclass(frozen=True)
class EngineOptions(Checked):
    """The engine that edits run in."""

    engine: Annotated[
        str,
        typer.Option(help="transformers, or vllm for edits (steering in a search still runs on transformers)."),
        OneOf(("transformers", "vllm")),
    ] = "transformers"
    engine_args: EngineArgs = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine_args and self.engine != "vllm":
            given = ", ".join(f"{name}={value}" for name, value in self.engine_args.items())
            raise InvalidValueError(f"--engine-arg is for --engine vllm, got {given} with {self.engine}.")

    def require(self, *, steering: bool) -> None:
        """Refuse to steer in an engine that cannot.

        Raises:
            InvalidValueError: as said.
        """
        if steering and self.engine == "vllm":
            raise InvalidValueError("vLLM runs edits only: leave --steer out, or use --engine transformers.")

    @contextmanager
    def running(self, model: "LanguageModel", *, steering: bool = True) -> "Iterator[Engine]":
        """The engine; vLLM's processes end with the context.

        Args:
            model: that it runs.
            steering: whether steering has to run as well, for which vLLM needs the transformers engine beside it.
        """
        from steer2edit.engines import RoutingEngine, TransformersEngine

        if self.engine == "transformers":
            yield TransformersEngine(model)
            return
        from steer2edit.engines.vllm import VllmEngine

        engine = VllmEngine(model, engine_args=self.engine_args)
        try:
            yield RoutingEngine(engine, TransformersEngine(model)) if steering else engine
        finally:
            engine.close()
