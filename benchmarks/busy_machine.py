"""A busy machine: what does it cost that the threads of one product wait for each other?

The physics. torch divides a product among OpenMP threads, which meet at its end. The one that comes first spins, so
that it can go on at once: libgomp, which torch's builds for Linux bring, spins 300,000 times (about 10 ms) before it
sleeps. On an idle machine the others come within microseconds. Where another program has taken a core, the thread
that all wait for is not running, and those that wait keep the core that it needs: a product of 0.1 ms ends when the
scheduler's slices (milliseconds) do, thousands of times a reply. Waking a sleeper costs some 50 µs; a thread that
spins about that long before it sleeps waits at most twice what the best policy would, whatever the others do (Karlin
et al. 1990). `import steer2edit` asks for that, unless the environment says otherwise or torch is there already.

Arms, in turn, each a process that stays, with SmolLM2 in it: `own` (libgomp's own policy: torch is imported first),
`ours` (steer2edit is imported first), `one` (one thread, which waits for nobody). `--spins` adds arms with these spin
counts. First with nothing beside them, then beside processes that compute without end.

Verified: `own` and `ours`, which use as many threads, say the same, token by token.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from timing import emit, in_turn, paired_ratio, say, spread

POLICY = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
PROMPTS = ("How do I bake bread?", "Why is the sky blue?", "Name three rivers.")
IDLE_AIM, BUSY_AIM = 1.05, 2.0
_WORKER = "import sys; sys.path[:0] = {paths!r}; {first}; from busy_machine import work; work({model!r}, {tokens})"
_SPIN = "while True: pass"


def work(model: str, tokens: int) -> None:
    """Reply whenever a line comes, and say with what."""
    from steer2edit.models import Sampling, generate, load_model

    loaded = load_model(model)
    print("ready", flush=True)
    for _ in sys.stdin:
        replies = generate(loaded, PROMPTS, Sampling(max_new_tokens=tokens))
        said = json.dumps([list(reply.ids) for reply in replies])
        print(hashlib.sha256(said.encode()).hexdigest(), flush=True)


class Worker:
    """A process that replies when asked, with the environment and first import of its arm."""

    def __init__(self, first: str, model: str, tokens: int, **policy: str) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in POLICY} | policy
        code = _WORKER.format(paths=sys.path, first=first, model=model, tokens=tokens)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.said: set[str] = set()

    def line(self) -> str:
        """What it writes next."""
        assert self.process.stdout is not None
        found = self.process.stdout.readline()
        if not found:
            raise SystemExit("WRONG: a worker ended early.")
        return found

    def reply(self) -> None:
        """Ask for the replies, and wait for them."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.said.add(self.line())


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds, idle and busy, after one to warm up.")] = 3,
    beside: Annotated[int, typer.Option(min=1, help="Processes that compute without end.")] = 2,
    tokens: Annotated[int, typer.Option(min=1, help="New tokens of each reply.")] = 8,
    spins: Annotated[str, typer.Option(help="More spin counts to compare, with commas between.")] = "",
    model: Annotated[str, typer.Option(help="A Hub id, a directory, or smollm2.")] = "smollm2",
) -> None:
    before = os.getloadavg()[0]
    workers = {
        "own": Worker("import torch", model, tokens),
        "ours": Worker("import steer2edit, torch", model, tokens),
        "one": Worker("import torch", model, tokens, OMP_NUM_THREADS="1"),
        **{n: Worker("import torch", model, tokens, GOMP_SPINCOUNT=n) for n in spins.split(",") if n},
    }
    beasts: list[subprocess.Popen[bytes]] = []
    try:
        for worker in workers.values():
            worker.line()
        arms: dict[str, Callable[[], object]] = {name: worker.reply for name, worker in workers.items()}
        say(f"nothing beside them (load before: {before:.1f})")
        idle = in_turn(arms, rounds)
        beasts += [subprocess.Popen([sys.executable, "-c", _SPIN]) for _ in range(beside)]
        say(f"{beside} processes beside them")
        busy = in_turn(arms, rounds)
    finally:
        for process in [*beasts, *(worker.process for worker in workers.values())]:
            process.kill()
    if len(workers["own"].said | workers["ours"].said) != 1:
        raise SystemExit("WRONG: the replies depend on how the threads wait.")
    lost, slower = paired_ratio(idle["ours"], idle["own"]), paired_ratio(busy["ours"], busy["one"])
    emit(
        "busy_machine",
        n={"rounds": rounds, "prompts": len(PROMPTS), "tokens": tokens, "beside": beside, "load_before": before},
        seconds={
            when: {arm: spread(s) for arm, s in found.items()} for when, found in (("idle", idle), ("busy", busy))
        },
        idle_ours_over_own=lost,
        busy_own_over_ours=paired_ratio(busy["own"], busy["ours"]),
        busy_ours_over_one_thread=slower,
        aim={"idle_ours_over_own": IDLE_AIM, "busy_ours_over_one_thread": BUSY_AIM},
        met=lost["median"] <= IDLE_AIM and slower["median"] <= BUSY_AIM,
        verified={"same_replies": True},
    )


if __name__ == "__main__":
    typer.run(main)
