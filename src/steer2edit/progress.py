"""Progress of long steps: silent in a library, shown where `show_progress()` is on.

On a terminal as bars, in a notebook as one line that changes, elsewhere (a pipe, a log) as a line now and then.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steer2edit.tables import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Advance = Callable[[float], None]
_shown: ContextVar[Any] = ContextVar("_shown", default=None)  # a rich.progress.Progress or a `_Line`, if any
_OFTEN, _SELDOM = 0.2, 30.0  # seconds between two lines: of a notebook, of a log


@contextmanager
def show_progress(*, piped: bool = True) -> Iterator[None]:
    """Show the steps run within the context, on stderr or in the notebook's cell; once where contexts are nested.

    Args:
        piped: whether to write lines where stderr is neither a terminal nor a notebook.
    """
    kernel, terminal = _notebook(), sys.stderr.isatty()
    if _shown.get() is not None or not (kernel or piped or terminal):
        yield
        return
    token = _shown.set(_bars() if terminal and not kernel else _Line(_cell() if kernel else None))
    try:
        yield
    finally:
        _shown.reset(token)


@contextmanager
def step(description: str, total: int) -> Iterator[Advance]:
    """Announce a step of `total` units; call the yielded function with the number of units just finished."""
    shown = _shown.get()
    if shown is None:
        yield lambda count: None
        return
    task = shown.add_task(visible(description), total=total)
    with shown if len(shown.tasks) == 1 else nullcontext():  # drawn while any step is under way
        try:
            yield lambda count: shown.advance(task, count)
        finally:
            shown.remove_task(task)


def console_of_bars() -> "Console | None":
    """The console that bars are being drawn on, if any: what is printed by it stands above them."""
    shown = _shown.get()
    console: Console | None = getattr(shown, "console", None)
    return console if console and shown.tasks else None


@dataclass(eq=False)
class _Task:
    description: str
    total: int
    begun: float
    done: float = 0.0


class _Line:
    """All steps under way as one line of text, which is written now and then; called as rich's Progress is."""

    def __init__(self, cell: Callable[[str], None] | None) -> None:
        """Writes in a notebook's cell, else on stderr."""
        self._cell, self._every = cell, _OFTEN if cell else _SELDOM
        self.tasks: list[_Task] = []
        self._next = time.monotonic() + min(self._every, 5.0)

    def __enter__(self) -> "_Line":
        return self

    def __exit__(self, *_: object) -> None:
        if self._cell:  # where it can be taken back, no line is left behind
            self._cell("")

    def add_task(self, description: str, total: int) -> _Task:
        self.tasks.append(_Task(description, total, time.monotonic()))
        return self.tasks[-1]

    def advance(self, task: _Task, count: float) -> None:
        task.done += count
        if (now := time.monotonic()) >= self._next:
            self._next, first = now + self._every, self.tasks[0]
            line = ", ".join(f"{own.description} {int(own.done)} of {own.total}" for own in self.tasks)
            if 0 < first.done < first.total:
                seconds = (now - first.begun) * (first.total - first.done) / first.done
                line += f"; about {seconds / 60:.0f} min left" if seconds > 90 else f"; about {seconds:.0f} s left"
            if self._cell:
                self._cell(line)
            else:
                sys.stderr.write(f"{line}\n")

    def remove_task(self, task: _Task) -> None:
        self.tasks.remove(task)


def _notebook() -> Any:
    """The shell of the notebook that this runs in, if it does."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell if hasattr(shell, "kernel") else None


def _cell() -> Callable[[str], None]:
    """Writes one line in the cell's output, in place of the one before."""
    from IPython.display import display

    handle = display({"text/plain": ""}, raw=True, display_id=True)
    return lambda text: handle.update({"text/plain": text}, raw=True)


def _bars() -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn as Remaining,
    )

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), Remaining())
    return Progress(*columns, console=Console(stderr=True), transient=True)
