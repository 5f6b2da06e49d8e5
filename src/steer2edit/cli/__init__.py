"""The command line: one file per command. Heavy imports happen inside commands, so `--help` is instant."""

import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from steer2edit import __version__
from steer2edit.cli.apply import apply
from steer2edit.cli.chat import chat
from steer2edit.cli.combine import combine
from steer2edit.cli.compare import compare
from steer2edit.cli.console import show_what_stdout_can, visible
from steer2edit.cli.convert import convert
from steer2edit.cli.demo import demo
from steer2edit.cli.evaluate import evaluate
from steer2edit.cli.export import export
from steer2edit.cli.extract import extract
from steer2edit.cli.import_edit import import_edit
from steer2edit.cli.inspect import inspect
from steer2edit.cli.options import expanded
from steer2edit.cli.push import push
from steer2edit.cli.report import report
from steer2edit.cli.run import run
from steer2edit.cli.search import search
from steer2edit.cli.steer import steer
from steer2edit.cli.stress import stress
from steer2edit.cli.vectors import vectors
from steer2edit.errors import Steer2EditError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Turn an activation-steering vector into a persistent, component-level weight edit, without training.\n\n"
    "extract, steer, convert, apply; start with: steer2edit demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


def _print_version(wanted: bool) -> bool:
    """Show the version and end, if that is wanted."""
    if not wanted:
        return False
    typer.echo(f"steer2edit {__version__}")
    raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version.")
    ] = False,
) -> None:
    """The callback of the app: its help is given there."""


for command in (
    extract,
    steer,
    convert,
    apply,
    chat,
    evaluate,
    inspect,
    search,
    compare,
    stress,
    run,
    report,
    demo,
    vectors,
    import_edit,
    combine,
    export,
    push,
):
    app.command()(expanded(command))


def main() -> None:
    """Run the command line; what a user can resolve is one message on stderr and exit status 1."""
    sys.path.append("")  # the current directory, where a user's own labeller, module:function, is looked for last
    show_what_stdout_can()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where a full disk is still an error that can be told
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
