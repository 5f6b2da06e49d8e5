"""The command line: every command. Other parts of the package are imported on first use, so `--help` is instant."""

import logging
import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from steer2edit import __version__
from steer2edit.cli import chat, edits, inspect, measure, play, runs, stress, vectors
from steer2edit.cli.console import show_what_stdout_can
from steer2edit.cli.options import expanded, listing
from steer2edit.errors import Steer2EditError
from steer2edit.tables import visible

__all__ = ["app", "main"]

app = typer.Typer(
    help="Turn an activation-steering vector into a persistent, component-level weight edit, without training.\n\n"
    "extract, steer, convert, apply; start with: steer2edit demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _main(
    version: Annotated[
        bool, listing(lambda: typer.echo(f"steer2edit {__version__}"), "Show the version.", "--version")
    ] = False,
) -> None:
    """The callback of the app: its help is given there."""


_COMMANDS = (
    *(vectors.extract, measure.steer, edits.convert, edits.apply, chat.chat, play.play, measure.evaluate),
    *(inspect.inspect, inspect.models, runs.search, runs.compare, stress.stress, runs.run, runs.report, runs.demo),
    *(vectors.vectors, edits.import_edit, edits.combine, edits.export, edits.push, edits.refit),
)
for _command in _COMMANDS:
    app.command()(expanded(_command))


def main() -> None:
    """Run the command line; what a user can resolve is one message on stderr and exit status 1."""
    sys.path.append("")  # the current directory, where a user's own labeller, module:function, is looked for last
    show_what_stdout_can()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks for a package it can do without
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where a full disk is still an error that can be told
    except KeyboardInterrupt:  # before or after the command, which says itself how to go on
        _end("Aborted!\n")
    except BrokenPipeError:
        _end("")
    except Steer2EditError as error:
        _end(f"steer2edit: {error}\n")
    except OSError as error:
        if error.errno is None:
            raise
        place = "the output" if error.filename is None else str(error.filename)
        _end(
            f"steer2edit: cannot read or write {place}: {error.strerror}. Check that it exists, who may use it, "
            "and the space on its disk.\n"
        )


def _end(message: str) -> None:
    """Exit with status 1, also where neither stdout nor stderr takes anything more."""
    with suppress(OSError):
        sys.stderr.write(visible(message))
    try:
        sys.stdout.flush()
    except OSError:  # what is left in the buffer would fail once more when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
