"""A script: the same search left alone, killed ten times, and asked for in two steps. `test_killed_search` judges.

    python killed_search.py CHECKPOINT WORK

Every attempt is a process of its own, forked from this one so that torch is imported once. It tells of what it is
about to do on a pipe; after a random number of such lines and a random delay it is killed with SIGKILL.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from tiny_search import CountingEngine, run, tiny_search, with_settings

from steer2edit.engines import Request, TransformersEngine
from steer2edit.models import Sampling, load_model

SEED = 20260101
KILLS = 10
MOST_STEPS = 30  # of an attempt before it is killed: about a third of a whole search
MODEL_STEPS = ("generate", "score")
MOST_MODEL_STEPS = 4
LONGEST_DELAY = 0.03  # s


class TellingEngine(CountingEngine):
    """Says when the model is about to run."""

    def __init__(self, engine: TransformersEngine, tell: Callable[[str], None]) -> None:
        super().__init__(engine)
        self._tell = tell

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Any:
        self._tell("generate")
        return super().generate(requests, sampling)

    def score(self, responses: Any, interventions: Any, *, kl: bool = True) -> Any:
        self._tell("score")
        return super().score(responses, interventions, kl=kl)


def tell_of_files(folder: Path, tell: Callable[[str], None]) -> None:
    """Say which file of the folder is about to be written or put in place."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(str(folder)) and arguments[1] not in ("r", "rb", None):
            tell(f"write {stage(Path(str(arguments[0])).name)}")
        if event == "os.rename" and str(arguments[1]).startswith(str(folder)):
            tell(f"place {stage(Path(str(arguments[1])).name)}")

    sys.addaudithook(hook)


def stage(name: str) -> str:
    """What a file is, whatever its temporary name."""
    known = ("steering.json", "held_out.json", "main-", "steer2edit.json", ".lock")
    return next((one for one in known if one in name), "edit")


def attempt(checkpoint: Path, out: Path, trials: int, tell: Callable[[str], None]) -> None:
    """A search from the checkpoint on the disk to the adapter."""
    tell_of_files(out, tell)
    search = tiny_search(engine=TellingEngine(TransformersEngine(load_model(str(checkpoint))), tell))
    run(with_settings(search, trials=trials, generation=4), out)


def forked(
    checkpoint: Path, out: Path, trials: int, steps: int | None = None, delay: float = 0.0, counted: Sequence[str] = ()
) -> str | None:
    """Run an attempt in a process of its own; kill it after so many steps, and return the last, if it got so far.

    Only steps of the `counted` kinds count, if any are given.
    """
    inlet, outlet = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(inlet)
        code = 1
        try:
            attempt(checkpoint, out, trials, lambda what: os.write(outlet, f"{what}\n".encode()) and None)
            code = 0
        finally:
            os._exit(code)
    os.close(outlet)
    told: list[str] = []
    passed = 0
    with os.fdopen(inlet) as lines:
        for line in lines:
            told.append(line.strip())
            passed += not counted or told[-1] in counted
            if passed == steps:
                time.sleep(delay)
                os.kill(pid, signal.SIGKILL)
                break
        else:
            steps = None
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return told[-1]
    assert os.waitstatus_to_exitcode(status) == 0, told[-3:]
    return None


def main() -> None:
    checkpoint, work = (Path(argument) for argument in sys.argv[1:])
    torch.set_num_threads(1)
    generator = random.Random(SEED)
    forked(checkpoint, work / "alone", 16)
    kills: list[str] = []
    while len(kills) < KILLS:
        running = len(kills) % 2  # every other kill while the model runs: an attempt has few such steps
        steps = generator.randint(1, MOST_MODEL_STEPS if running else MOST_STEPS)
        delay = generator.uniform(0, LONGEST_DELAY)
        last = forked(checkpoint, work / "killed", 16, steps, delay, MODEL_STEPS if running else ())
        kills += [] if last is None else [last]
    forked(checkpoint, work / "killed", 16)
    forked(checkpoint, work / "extended", 8)
    first = sorted(path.name for path in (work / "extended" / "trials").iterdir())
    forked(checkpoint, work / "extended", 16)
    print(json.dumps({"kills": kills, "first": first}))


if __name__ == "__main__":
    main()
