"""`steer2edit play`."""

import ipaddress
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from steer2edit.cli.console import say
from steer2edit.cli.options import ModelArgument, OverwriteOption, load
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
    space: Annotated[Path | None, typer.Option(help="Write a folder for a Hugging Face Space instead.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Open a page on which base, steered and edited model answer side by side; it works offline.

    Strength, heads and neurons are switched there, every token shows what it costs, and what is seen can be copied as a
    command or as Python, and saved. Needs Gradio: pip install '.[play]'.

    \b
    Example:
    steer2edit play smollm2 edit vectors.safetensors
    """
    if space is None:
        open_page(model, artifacts or (), loading, host=host, port=port).block_thread()
        return
    from steer2edit.artifacts import require_free
    from steer2edit.play.space import write_space

    require_free(space, overwrite=overwrite)
    write_space(_stage(model, artifacts or (), loading, host).model, artifacts or (), space, overwrite=overwrite)
    say(f"Space: {space}")


def open_page(
    model: str,
    artifacts: Sequence[Path] = (),
    loading: Loading | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
) -> Any:
    """The page, served until its `close` or for good by `block_thread`; an InvalidValueError without Gradio or port."""
    try:
        from steer2edit.play.page import serve
    except ModuleNotFoundError as error:
        raise InvalidValueError("the playground needs Gradio: pip install '.[play]'.") from error
    with show_progress():
        stage = _stage(model, artifacts, loading or Loading(), host)
        stage.unit(stage.first)
    page = serve(stage, host, port)
    say(f"Playground: {page.local_url} (Ctrl+C ends it)")
    return page


def _stage(model: str, artifacts: Sequence[Path], loading: Loading, host: str) -> Any:
    """The model and what can be chosen; edits are saved in this folder, unless others can reach the page."""
    from steer2edit.play.stage import Stage, read_artifacts

    first = read_artifacts(artifacts)
    loaded = load(model, loading, *(one.metadata for one in first.artifacts))
    alone = host == "localhost"
    with suppress(ValueError):  # a name
        alone |= ipaddress.ip_address(host).is_loopback
    changed = {key: value for key, value in vars(loading).items() if value != getattr(Loading(), key)}
    return Stage(loaded, first, Path.cwd() if alone else None, changed)
