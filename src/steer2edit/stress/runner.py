"""Running tests one after the other, each kept as soon as it is finished."""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from steer2edit.engines import RememberingEngine
from steer2edit.errors import Steer2EditError
from steer2edit.models.batching import out_of_memory
from steer2edit.progress import Advance, step
from steer2edit.stress.kept import KeptResults
from steer2edit.stress.plain_prompts import measure_plain, plain_cost
from steer2edit.stress.registry import RESERVED
from steer2edit.stress.stress_test import Cost, StressResult, StressTest, Subject, Suite
from steer2edit.stress.timing import Pace, duration, units

Narrate = Callable[[str], None]


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


@dataclass(frozen=True)
class Runner:
    """Runs tests on a subject in a run folder.

    Args:
        subject: what is tested.
        engine: runs the model and remembers the plain replies of every arm; every test gets a branch of it, so that
            what a test finds does not depend on which tests ran before it.
        suite: quick or full.
        kept: results in the run folder.
        narrate: told what is done.
    """

    subject: Subject
    engine: RememberingEngine
    suite: Suite
    kept: KeptResults
    narrate: Narrate
    _pace: Pace = field(default_factory=Pace)

    def plain(self) -> tuple[StressResult, float]:
        """(what was found on the prompts as they are, seconds it took), measured once.

        The replies are remembered and kept, for many tests compare with them: in half precision a reply depends on its
        batch, so that a run that goes on must not make them in another one.
        """
        found = self.kept.find(RESERVED)
        if found is not None:
            self.engine.remember(self.kept.remembered(self._labels))
        else:
            begin = time.monotonic()
            result = measure_plain(replace(self.subject, engine=self.engine))
            self.kept.keep_remembered(self.engine.replies, self._labels)
            found = self._keep(RESERVED, result, time.monotonic() - begin)
        self._pace.add(plain_cost(self.subject), found[1])
        return found

    def run(self, tests: Sequence[StressTest]) -> list[Done]:
        """Run the tests that are not done yet; all tests in their order.

        A test that raises an error is done without a result. If that is no `Steer2EditError`, it is a fault of the
        test or of what it runs, and the traceback is kept in the run folder.
        """
        found = {test.name: self.kept.find(test.name) for test in tests}
        costs = {test.name: self._cost(test) for test in tests if found[test.name] is None}
        if 0 < len(costs) < len(tests):
            self.narrate(f"Going on: {len(tests) - len(costs)} of {len(tests)} tests are done.")
        done = []
        with step("Stress tests", sum(map(_ticks, costs.values()))) as advance:
            for test in tests:
                known = found[test.name]
                done.append(Done(test, *known) if known is not None else self._run(test, costs, advance))
        return done

    def done_before(self, tests: Sequence[StressTest]) -> list[Done]:
        """Those of other tests that an earlier call has finished in this folder."""
        found = {test.name: self.kept.find(test.name) for test in tests}
        return [Done(test, *known) for test in tests if (known := found[test.name]) is not None]

    def _run(self, test: StressTest, costs: dict[str, Cost], advance: Advance) -> Done:
        number = f"[{len(costs)} left]" if len(costs) > 1 else "[last]"
        self.narrate(f"{number} {test.name}: {_expected(costs[test.name], self._pace)}; {_left(costs, self._pace)}")
        done = self._attempt(test)
        cost = costs.pop(test.name)
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
            self.kept.scratch(test.name) as folder,
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):  # fmt: skip
            torch.manual_seed(self.subject.seed)
            try:
                result = test.run(replace(self._subject(), folder=folder), self.suite)
            except Steer2EditError as error:
                return Done(test, None, message=str(error))
            except Exception as error:  # a faulty test, of a plug-in perhaps, shall not cost what the others find
                return Done(test, None, message=self._fault(test.name, error))
        return Done(test, *self._keep(test.name, result, time.monotonic() - begin))

    def _fault(self, name: str, error: Exception) -> str:
        if out_of_memory(error):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return "memory ran out. Use a smaller dtype (--dtype bfloat16), a smaller --limit, or a larger device."
        where = self.kept.keep_error(name, "".join(traceback.format_exception(error)))
        return f"it failed, which is a fault of the test: {type(error).__name__}: {error}. The traceback is in {where}."

    def _keep(self, name: str, result: StressResult, seconds: float) -> tuple[StressResult, float]:
        """Keep a result and read it back: a run that goes on sees exactly what this one sees."""
        self.kept.keep(name, result, seconds)
        found = self.kept.find(name)
        assert found is not None
        return found

    @property
    def _labels(self) -> list[str]:
        return [arm.label for arm in self.subject.arms]

    def _subject(self) -> Subject:
        return replace(self.subject, engine=self.engine.branch())

    def _cost(self, test: StressTest) -> Cost:
        try:
            return test.cost(self.subject, self.suite)
        except Steer2EditError:  # running it will say what is wrong
            return Cost()


def _expected(cost: Cost, pace: Pace) -> str:
    parts = [f"{cost.replies} replies"] if cost.replies else []
    parts += [f"{cost.passes} passes"] if cost.passes else []
    seconds = pace.seconds(cost)
    about = [] if seconds is None or not parts else [f"about {duration(seconds)}"]
    return ", ".join([*parts, *about]) or "cost unknown"


def _left(costs: Mapping[str, Cost], pace: Pace) -> str:
    seconds = [pace.seconds(cost) for cost in costs.values()]
    return f"about {duration(sum(s for s in seconds if s is not None))} in all"


def _ticks(cost: Cost) -> int:
    return max(1, round(units(cost)))
