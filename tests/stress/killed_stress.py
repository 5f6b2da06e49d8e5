"""A script: the same stress run left alone, and killed eight times with SIGKILL. `test_runner` judges.

    python killed_stress.py WORK

Every attempt is a process of its own, forked from this one. It tells what it is about to do on a pipe, and is killed
after a random number of such lines and a random delay.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from tiny_stress import ToyTest, tiny_input

from steer2edit.engines import Request, TransformersEngine
from steer2edit.models import Sampling
from steer2edit.stress.given import StressInput
from steer2edit.stress.run import run_stress

SEED = 20260103
KILLS = 6
MOST_STEPS = {"generate": 8, "place": 10}  # of an attempt before it is killed
LONGEST_DELAY = 0.02  # s


class TellingEngine(TransformersEngine):
    """Says when the model is about to run."""

    outlet: int

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Any:
        os.write(self.outlet, b"generate\n")
        return super().generate(requests, sampling)


def attempt(out: Path, outlet: int) -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and str(arguments[1]).startswith(str(out)):
            os.write(outlet, f"place {Path(str(arguments[1])).name}\n".encode())

    sys.addaudithook(hook)
    given = tiny_input(steering=True)
    engine = TellingEngine(given.engine.model)
    engine.outlet = outlet
    given = StressInput(engine, given.edit, given.options, given.vectors)
    run_stress(given, [ToyTest("one"), ToyTest("two"), ToyTest("three")], out, lambda text: None)


def forked(out: Path, kind: str = "", steps: int = 0, delay: float = 0.0) -> str | None:
    """Run an attempt; kill it after so many steps of a kind, and return the last, if it got so far."""
    inlet, outlet = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(inlet)
        code = 1
        try:
            attempt(out, outlet)
            code = 0
        finally:
            os._exit(code)
    os.close(outlet)
    told: list[str] = []
    passed = 0
    with os.fdopen(inlet) as lines:
        for line in lines:
            told.append(line.strip())
            passed += told[-1].startswith(kind)
            if passed == steps:
                time.sleep(delay)
                os.kill(pid, signal.SIGKILL)
                break
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return told[-1]
    assert os.waitstatus_to_exitcode(status) == 0, told[-3:]
    return None


def main() -> None:
    work = Path(sys.argv[1])
    torch.set_num_threads(1)
    generator = random.Random(SEED)
    forked(work / "alone")
    kills: list[str] = []
    while len(kills) < KILLS:
        kind = ("generate", "place")[len(kills) % 2]
        steps = generator.randint(1, MOST_STEPS[kind])
        last = forked(work / "killed", kind, steps, generator.uniform(0, LONGEST_DELAY))
        if last is None:  # it came to its end: begin again
            (work / "killed").rename(work / f"done-{len(list(work.iterdir()))}")
        kills += [] if last is None else [last]
    forked(work / "killed")
    print(json.dumps(kills))


if __name__ == "__main__":
    main()
