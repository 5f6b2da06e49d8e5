"""`steer2edit play`."""

import ipaddress
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from steer2edit.cli.console import say
from steer2edit.cli.options import ModelArgument, load
from steer2edit.errors import InvalidValueError
from steer2edit.progress import show_progress
from steer2edit.settings import Loading


def play(
    model: ModelArgument,
    loading: Loading,
    artifacts: Annotated[
        list[Path] | None, typer.Argument(metavar="EDIT|VECTORS", help="Edits and vectors to choose from.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve at; 0.0.0.0 opens the page to others.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="By default the first free one from 7860.")] = None,
) -> None:
    """Open a page on which base, steered and edited model answer side by side; it works offline.

    Strength, heads and neurons are switched there, every token shows what it costs, and what is seen can be copied as a
    command or as Python, and saved. Needs Gradio: pip install '.[play]'.

    \b
    Example:
    steer2edit play smollm2 edit vectors.safetensors
    """
    open_page(model, artifacts or (), loading, host=host, port=port).block_thread()


def open_page(
    model: str,
    artifacts: Sequence[Path] = (),
    loading: Loading | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
) -> Any:
    """The page, which is served until its `close`, or for good by its `block_thread`.

    Edits are saved in this folder, unless others can reach the page. An InvalidValueError if Gradio is not installed,
    or the port is in use.
    """
    try:
        from steer2edit.play.page import serve
    except ModuleNotFoundError as error:
        raise InvalidValueError("the playground needs Gradio: pip install '.[play]'.") from error
    from steer2edit.play.stage import Stage, read_artifacts

    alone = host == "localhost"
    with suppress(ValueError):  # a name
        alone |= ipaddress.ip_address(host).is_loopback
    usual = Loading()
    loading = loading or usual
    changed = {key: value for key, value in vars(loading).items() if value != getattr(usual, key)}
    with show_progress():
        first = read_artifacts(artifacts)
        loaded = load(model, loading, *(one.metadata for one in first.artifacts))
        stage = Stage(loaded, first, Path.cwd() if alone else None, changed)
        stage.unit(first)
    page = serve(stage, host, port)
    say(f"Playground: {page.local_url} (Ctrl+C ends it)")
    return page
