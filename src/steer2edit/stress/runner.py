"""Running tests one after the other, each written down as soon as it is finished."""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from steer2edit.engines import RememberingEngine
from steer2edit.errors import Steer2EditError
from steer2edit.models.batching import out_of_memory
from steer2edit.progress import Advance, step
from steer2edit.stress.counting import Cost
from steer2edit.stress.findings import StressResult
from steer2edit.stress.folder import StressFolder
from steer2edit.stress.plain_prompts import measure_plain
from steer2edit.stress.rehearsal import Rehearsal
from steer2edit.stress.subject import StressTest, Subject

Narrate = Callable[[str], None]
PLAIN = "plain"
"""What every run measures first, the prompts as they are: no test is named so."""
_PASSES_PER_REPLY = 3  # a reply of 24 tokens takes about as long as so many passes, on a CPU and in batches


@dataclass(frozen=True)
class Done:
    """One test with what it found.

    Args:
        test: the test.
        result: without replies; `None` where it could not be run.
        seconds: that it took.
        message: why it could not be run.
    """

    test: StressTest
    result: StressResult | None
    seconds: float | None = None
    message: str = ""


@dataclass
class Pace:
    """Seconds per reply so far; not known before anything was measured."""

    _units: float = 0.0
    _seconds: float = 0.0

    def add(self, cost: Cost, seconds: float) -> None:
        """Take note of what something took."""
        self._units += units(cost)
        self._seconds += seconds

    def expected(self, *costs: Cost) -> str:
        """How long something will take: `about 40 s`, `about 3 min`, `about 2.5 h`."""
        seconds = sum(self._seconds / self._units * units(cost) for cost in costs) if self._units else 0.0
        if seconds < 90:
            return f"about {max(1, round(seconds))} s"
        return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def units(cost: Cost) -> float:
    """Cost in replies."""
    return cost.replies + cost.passes / _PASSES_PER_REPLY


@dataclass(frozen=True)
class Runner:
    """Runs tests on a subject in a run folder.

    Args:
        subject: what is tested.
        engine: runs the model and remembers the plain replies of every arm; every test gets a branch of it, so that
            what a test finds does not depend on which tests ran before it.
        results: in the run folder.
        narrate: told what is done.
    """

    subject: Subject
    engine: RememberingEngine
    results: StressFolder
    narrate: Narrate
    _pace: Pace = field(default_factory=Pace)

    def plain(self) -> tuple[StressResult, float]:
        """(what was found on the prompts as they are, seconds it took), measured once.

        The replies are remembered and written down, for many tests compare with them: in half precision a reply depends
        on its batch, so that a run that goes on must not make them in another one.
        """
        labels = [arm.label for arm in self.subject.arms]
        found = self.results.find(PLAIN)
        if found is not None:
            self.engine.remember(self.results.remembered(labels))
        else:
            begin = time.monotonic()
            result = measure_plain(replace(self.subject, engine=self.engine))
            self.results.write_remembered(self.engine.replies, labels)
            found = self.results.write(PLAIN, result, time.monotonic() - begin)
        self._pace.add(Rehearsal(self.subject).cost(measure_plain), found[1])
        return found

    def run(self, tests: Sequence[StressTest]) -> list[Done]:
        """Run the tests that are not done yet; all tests in their order.

        A test that raises an error is done without a result. If that is no `Steer2EditError`, it is a fault of the
        test or of what it runs, and the traceback is written into the run folder.
        """
        done = {one.test.name: one for one in self.done_before(tests)}
        rehearsal = Rehearsal(self.subject, self.engine.replies)
        costs = {test.name: _cost(rehearsal, test) for test in tests if test.name not in done}
        if 0 < len(costs) < len(tests):
            self.narrate(f"Going on: {len(done)} of {len(tests)} tests are done.")
        with step("Stress tests", sum(map(_ticks, costs.values()))) as advance:
            return [done.get(test.name) or self._run(test, costs, advance) for test in tests]

    def done_before(self, tests: Sequence[StressTest]) -> list[Done]:
        """Those of the tests that an earlier call has finished in this folder."""
        found = [(test, self.results.find(test.name)) for test in tests]
        return [Done(test, *known) for test, known in found if known is not None]

    def _run(self, test: StressTest, costs: dict[str, Cost], advance: Advance) -> Done:
        cost = costs[test.name]
        number = f"[{len(costs)} left]" if len(costs) > 1 else "[last]"
        in_all = f"{self._pace.expected(*costs.values())} in all"
        self.narrate(f"{number} {test.name}: {_expected(cost, self._pace)}; {in_all}")
        done = self._attempt(test)
        del costs[test.name]
        if done.seconds is None:
            self.narrate(f"  not tested: {done.message}")
        else:
            self._pace.add(cost, done.seconds)
        advance(_ticks(cost))
        return done

    def _attempt(self, test: StressTest) -> Done:
        """Run a test, with random numbers that depend on the seed alone, in a folder of its own."""
        begin = time.monotonic()
        device = self.subject.model.device
        with (
            self.results.scratch(test.name) as folder,
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):  # fmt: skip
            torch.manual_seed(self.subject.seed)
            try:
                result = test.run(replace(self.subject, engine=self.engine.branch(), folder=folder))
                return Done(test, *self.results.write(test.name, result, time.monotonic() - begin))
            except Steer2EditError as error:
                return Done(test, None, message=str(error))
            except Exception as error:  # a faulty test shall not cost what the others find
                return Done(test, None, message=self._fault(test.name, error))

    def _fault(self, name: str, error: Exception) -> str:
        if out_of_memory(error):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return "memory ran out. Use a smaller dtype (--dtype bfloat16), a smaller --limit, or a larger device."
        where = self.results.write_error(name, "".join(traceback.format_exception(error)))
        return f"it failed, which is a fault of the test: {type(error).__name__}: {error}. The traceback is in {where}."


def _cost(rehearsal: Rehearsal, test: StressTest) -> Cost:
    try:
        return rehearsal.cost(test.run)
    except Exception:  # running it will say what is wrong
        return Cost()


def _expected(cost: Cost, pace: Pace) -> str:
    parts = [f"{cost.replies} replies"] if cost.replies else []
    parts += [f"{cost.passes} passes"] if cost.passes else []
    return ", ".join([*parts, pace.expected(cost)]) if parts else "cost unknown"


def _ticks(cost: Cost) -> int:
    return max(1, round(units(cost)))
