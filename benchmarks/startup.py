"""Start-up: how long does `steer2edit --help` take?

The physics. Python itself starts in a few hundredths of a second. Importing torch takes about a second, transformers
more; drawing help needs neither. So commands import them inside, when they run, and help costs Python, typer and the
definitions of the options: the aim is 0.5 s of wall time.

Arms, in turn, each run a process of its own: `help` (`steer2edit --help`) and `python` (the interpreter that does
nothing), which is what no change of ours can go below.

Verified: the help names every command, and none of the heavy packages has been imported by then.
"""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from timing import emit, in_turn, paired_ratio, say, spread

AIM_SECONDS = 0.5
COMMANDS = ("extract", "steer", "convert", "apply", "inspect", "demo")
HEAVY = ("torch", "transformers", "peft", "safetensors", "numpy", "scipy", "plotly", "jinja2", "pydantic")
_HELP_AND_IMPORTS = f"""
import sys
sys.argv = ["steer2edit", "--help"]
try:
    from steer2edit.cli import main
    main()
finally:
    print("imported:", *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


def command() -> str:
    """The installed `steer2edit` that belongs to this Python."""
    found = Path(sys.executable).with_name("steer2edit")
    if not found.exists():
        raise SystemExit(f"there is no {found}: install the package into this environment first.")
    return str(found)


def run(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def verify() -> list[str]:
    done = subprocess.run([sys.executable, "-c", _HELP_AND_IMPORTS], check=True, capture_output=True, text=True)
    missing = [name for name in COMMANDS if name not in done.stdout]
    if missing:
        raise SystemExit(f"WRONG: the help does not name {', '.join(missing)}.")
    imported = done.stderr.rpartition("imported:")[2].split()
    say(f"the help names all {len(COMMANDS)} commands; heavy packages imported: {', '.join(imported) or 'none'}")
    if imported:
        raise SystemExit(f"WRONG: drawing help imported {', '.join(imported)}.")
    return list(COMMANDS)


def main(rounds: Annotated[int, typer.Option(min=5, help="Measured runs of each, after one to warm up.")] = 10) -> None:
    steer2edit = command()
    named = verify()
    seconds = in_turn(
        {"help": lambda: run(steer2edit, "--help"), "python": lambda: run(sys.executable, "-c", "")}, rounds
    )
    taken = spread(seconds["help"])
    emit(
        "startup",
        n={"rounds": rounds},
        seconds={"help": taken, "python": spread(seconds["python"])},
        help_over_python=paired_ratio(seconds["help"], seconds["python"]),
        aim={"help_seconds": AIM_SECONDS},
        met=taken["median"] < AIM_SECONDS,
        verified={"commands_named": named, "heavy_packages_imported": []},
    )


if __name__ == "__main__":
    typer.run(main)
