"""Progress of long steps: silent in a library, a bar where `show_progress()` is on (the command line turns it on)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Advance = Callable[[int], None]
_bars = ContextVar("_bars", default=None)  # the rich.progress.Progress in use, if any


@contextmanager
def show_progress() -> Iterator[None]:
    """Show bars on stderr for the steps run within the context, and nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        token = _bars.set(bars)  # type: ignore[arg-type]
        try:
            yield
        finally:
            _bars.reset(token)


@contextmanager
def step(description: str, total: int) -> Iterator[Advance]:
    """Announce a step of `total` units; call the yielded function with the number of units just finished."""
    bars = _bars.get()
    if bars is None:
        yield lambda count: None
        return
    task = bars.add_task(description, total=total)
    try:
        yield lambda count: bars.advance(task, count)
    finally:
        bars.remove_task(task)
