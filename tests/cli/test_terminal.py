"""Output that a terminal cannot show, or that nothing takes: what the user sees of it, by the whole program."""

import io
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

import steer2edit.cli
from steer2edit.cli import app, console, main
from steer2edit.errors import DataError
from steer2edit.tables import text_table

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
PROGRAM = [sys.executable, "-m", "steer2edit"]
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")


def encoded(monkeypatch: pytest.MonkeyPatch, encoding: str) -> io.BytesIO:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    console.show_what_stdout_can()
    return raw


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "|v| -3 rho ? x"), ("cp1252", "|v| -3 rho ? ×"), ("utf-8", "‖v‖ −3 ρ 茶 ×")]
)
def test_what_an_encoding_lacks(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = encoded(monkeypatch, encoding)
    console.say("‖v‖ −3 ρ 茶 ×")
    console.print_table(["‖v‖ −3 ρ 茶 ×"], [["‖v‖ −3 ρ 茶 ×"]], "‖v‖ −3 ρ 茶 ×")
    lines = [line.strip() for line in raw.getvalue().decode(encoding).splitlines() if line.strip()]
    assert set(lines) == {shown}
    assert len(lines) == 4


def test_json_is_the_same_in_every_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"reply": "\x1b[2J\x9b茶 \ud83d", "ρ": 1}
    raw = encoded(monkeypatch, "ascii")
    console.print_json(value)
    assert json.loads(raw.getvalue()) == value
    assert b"\x1b" not in raw.getvalue()


def test_nothing_steers_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = encoded(monkeypatch, "utf-8")
    console.say("\x1b[2J")
    console.print_table(["\x1b[2J"], [["\x1b[2J"]], "\x1b[2J")
    assert b"\x1b" not in raw.getvalue()
    assert raw.getvalue().decode().count("⟨U+001B⟩[2J") == 4


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_in_every_encoding(command: str) -> None:
    assert CliRunner().invoke(app, [command, "--help"]).output.isascii()


def ended(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def fail() -> None:
        raise error

    monkeypatch.setattr(steer2edit.cli, "app", fail)
    with pytest.raises(SystemExit) as info:
        main()
    return int(str(info.value.code))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "cannot read or write the output: No space left on device. "),
        (PermissionError(13, "Permission denied", "/here"), "cannot read or write /here: Permission denied. "),
        (NotADirectoryError(20, "Not a directory", "\x1b[2J"), "cannot read or write ⟨U+001B⟩[2J: Not a directory. "),
        (DataError("a\x1b[2J.csv has no rows."), "a⟨U+001B⟩[2J.csv has no rows.\n"),
    ],
)
def test_errors_of_the_disk_are_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert ended(monkeypatch, error) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"steer2edit: {message}")
    assert shown.count("\n") == 1


def test_a_reader_that_has_gone_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert ended(monkeypatch, BrokenPipeError(32, "Broken pipe")) == 1
    assert capsys.readouterr().err == ""


def test_an_interruption_outside_of_a_command_is_one_word(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert ended(monkeypatch, KeyboardInterrupt()) == 1
    assert capsys.readouterr().err == "Aborted!\n"


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steer2edit.cli, "app", lambda: (_ for _ in ()).throw(OSError("no number: not of the disk")))
    with pytest.raises(OSError, match="no number"):
        main()


@FULL
def test_a_full_disk_behind_stdout() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*PROGRAM, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("steer2edit: cannot read or write the output: No space left on device.")
    assert done.stderr.count("\n") == 1


def test_a_folder_that_was_removed(tmp_path: Path) -> None:
    (gone := tmp_path / "gone").mkdir()
    script = "import os, runpy, sys; os.rmdir(os.getcwd()); sys.argv[1:] = ['--help']; runpy.run_module('steer2edit')"
    search = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=gone,
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "steer2edit demo" in done.stdout


@pytest.mark.parametrize("width", [10, 40, 80, 200])
def test_a_table_fits_and_drops_no_digit(width: int) -> None:
    cells = [f"{i}.234 [0.111, 0.999] (12 unscored)" for i in range(8)]
    names = [f"harmful refused\nn={i}" for i in range(8)]
    lines = text_table(["", *names], [["a row of some words", *cells], ["b", *["-12 % [7, 20]"] * 8]], width)
    shown = "\n".join(lines)
    for token in ("-12 %", "[7, 20]", "[0.111, 0.999]", "(12 unscored)", *(f"{i}.234" for i in range(8))):
        assert token in shown
    longest = max(len("[0.111, 0.999]") + 2 + len("words"), width)  # two columns at least
    assert max(map(len, lines)) <= longest
    if width == 200:
        assert len(lines) > 4


def test_a_table_that_fits_is_a_line_per_row() -> None:
    assert text_table(["", "n"], [["one", "2 % [1, 3]"]], 80) == ["              n", "one  2 % [1, 3]"]


def test_text_and_bars_do_not_collide() -> None:
    """On a terminal, what is said while bars are drawn erases them first, and stands in lines of its own."""
    pty = pytest.importorskip("pty")
    code = (
        "from steer2edit.progress import show_progress, step\n"
        "from steer2edit.cli.console import say\n"
        "with show_progress(), step('Trials', 2) as advance:\n"
        "    advance(1)\n    say('found one')\n    advance(1)\n"
    )
    terminal, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how a terminal ends
        while piece := os.read(terminal, 65536):
            shown += piece
    os.close(terminal)
    assert process.wait() == 0
    assert b"\x1b[2Kfound one\r\n" in shown
    assert b"Trials" in shown
