"""The command line: one file per command. Heavy imports happen inside commands, so `--help` is instant."""

import os
import sys
from typing import Annotated

import typer

from steer2edit import __version__
from steer2edit.cli.apply import apply
from steer2edit.cli.combine import combine
from steer2edit.cli.convert import convert
from steer2edit.cli.demo import demo
from steer2edit.cli.evaluate import evaluate
from steer2edit.cli.export import export
from steer2edit.cli.extract import extract
from steer2edit.cli.import_edit import import_edit
from steer2edit.cli.inspect import inspect
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
    "extract → steer → convert → apply; start with: steer2edit demo",
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
    evaluate,
    inspect,
    search,
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
    app.command()(command)


def main() -> None:
    """Run the command line; an expected error is one message on stderr and exit status 1."""
    sys.path.append(os.getcwd())  # where a user's own labeller, module:function, is looked for last
    try:
        app()
    except Steer2EditError as error:
        sys.stderr.write(f"steer2edit: {error}\n")
        sys.exit(1)
