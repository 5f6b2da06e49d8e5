"""A stress run from start to end, in a run folder that a killed run goes on from."""

import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import TypeAdapter

from steer2edit.artifacts import atomic_file, package_versions
from steer2edit.artifacts.facts import BaseModelRecord
from steer2edit.artifacts.manifest import now, plain_json
from steer2edit.artifacts.run_folder import RunFolder, RunKind, damage_explained, write_json
from steer2edit.core import Editing
from steer2edit.engines import RememberingEngine
from steer2edit.errors import Steer2EditError
from steer2edit.estimates import Estimate
from steer2edit.evaluation import BASE_ARM
from steer2edit.evaluation.statistics import paired
from steer2edit.models.batching import out_of_memory
from steer2edit.progress import step
from steer2edit.steering.examples import prompt_digests, spread
from steer2edit.stress.effects import measure_plain
from steer2edit.stress.findings import GROUPS, RESULT, StressResult, Texts
from steer2edit.stress.given import EDIT_LABEL, EqualDrift, StressInput, arm_of, equal_drift, methods_of
from steer2edit.stress.registry import StressTest
from steer2edit.stress.scorecard import (
    ArmRecord,
    EditRecord,
    Entry,
    Line,
    PromptsRecord,
    Scorecard,
    contract_of,
    judge,
    summarise,
)
from steer2edit.stress.subject import Replies, Subject, ask, ask_plain, in_form
from steer2edit.stress.verdicts import requests_for

PLAIN = "plain"
"""What every run measures first, the prompts as they are: no test is named so."""
SCORECARD_FILE = "scorecard.json"
_LEAST_REQUESTS = 24
_QUICK_REQUESTS = 64  # harmful ones in the quick suite, of which the plain gain is told
_PLAIN_TEST = StressTest(
    PLAIN, "attacks", "The prompts as they are: refusals, drift from the base, repetition and empty replies.",
    "this project", lambda subject: measure_plain(subject, ask_plain(subject, subject.harmful)),
)  # fmt: skip
_KIND = RunKind("stress run", 2, "testing", "model, edit, prompts and options")
_ASKED = TypeAdapter(Replies)
_Kept = TypeVar("_Kept")
Narrate = Callable[[str], None]


class StressFolder(RunFolder):
    """The results of a run: `tests/NAME.json` and `replies/NAME.json`; until a test is done, `asked/NAME/LINE.json`.

    Raises an ArtifactError for a file that is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, _KIND)

    def read(self, name: str, kind: TypeAdapter[_Kept]) -> _Kept | None:
        """What `NAME.json` holds, if it is there."""
        path = self.path / f"{name}.json"
        if not path.exists():
            return None
        with damage_explained(path):
            return kind.validate_json(path.read_bytes())

    def find(self, name: str) -> StressResult | None:
        """What a test found, if it is there, without the replies."""
        return self.read(f"tests/{name}", RESULT)

    def write(self, name: str, result: StressResult, *, keep_asked: bool = False) -> StressResult:
        """Write a result, the replies first: one that is there is complete. Returns what a run that goes on sees.

        `keep_asked` keeps what was asked line by line, for tests to come.
        """
        content = result.to_json()
        write_json(self.path / "replies" / f"{name}.json", {"name": name, "replies": content.pop("replies")})
        stored = {"schema_version": _KIND.schema_version, "name": name, **content}
        write_json(self.path / "tests" / f"{name}.json", stored)
        if not keep_asked:
            shutil.rmtree(self.path / "asked" / name, ignore_errors=True)
        return RESULT.validate_python(stored)

    def keep(self, test: str, line: str, make: Callable[[], Replies]) -> Replies:
        """What was asked in a line of a test: made and written down if it is not there."""
        name = f"asked/{test}/{line.replace('/', '--')}"
        self.once(name, lambda: json.loads(_ASKED.dump_json(make(), fallback=lambda scalar: scalar.item())))
        found = self.read(name, _ASKED)
        assert found is not None
        return found

    def replies(self, name: str) -> Texts:
        """What the model said in a test, by arm and line; nothing where nothing was written."""
        found = self.read(f"replies/{name}", RESULT)
        return {} if found is None else found.replies


def run_stress(
    given: StressInput,
    tests: Sequence[StressTest],
    out: Path,
    narrate: Narrate,
    *,
    others: Iterable[StressTest] = (),
    name: str = "the edit",
    command: str = "",
) -> Scorecard:
    """Run tests in the run folder `out`, going on where an earlier call was stopped, and write `scorecard.json`.

    A test that cannot be run here is listed as not tested, and tried again by the next call. What the folder has of
    `others`, tests that there are besides, is in the scorecard too; the rest is named among what was not tested.
    `name` is the edit's, for people, and `command` what the user typed; `narrate` is told what is done, step by step.

    Raises:
        MismatchError: the folder holds another run.
        ArtifactError: another process works in it, or it cannot be written.
    """
    with StressFolder(out).opened(given.identity()) as results:
        subject, steering = _begun(given, results, narrate)
        plain = _plain(subject, results, narrate)
        messages = _run(subject, tests, results, narrate)
        known = {test.name: test for test in (*tests, *others)}
        found = {name: results.find(name) for name in known}
        left = [name for name, result in found.items() if result is None and name not in messages]
        entries = [
            _entry(test, found[name], subject, messages.get(name, ""))
            for name, test in known.items() if name not in left
        ]  # fmt: skip
        entries.sort(key=lambda entry: list(GROUPS).index(entry.group))  # type: ignore[arg-type]
        card = _scorecard(given, subject, steering, _entry(_PLAIN_TEST, plain, subject), entries, left, name, command)
        write_json(out / SCORECARD_FILE, card.to_json())
        return card


def _scorecard(
    given: StressInput, subject: Subject, steering: str, plain: Entry, entries: list[Entry], left: list[str],
    name: str, command: str,
) -> Scorecard:  # fmt: skip
    """The card of a run; `left` are tests that nobody asked for."""
    options, settings = given.options, given.edit.metadata.get("hyperparameters")
    at = "" if options.strength == 1 else f", at strength {options.strength:g}"
    return Scorecard(
        title=f"Stress tests of {name}, an edit of {given.model.name}{at}",
        created=now(), command=command, versions=package_versions(),
        model=BaseModelRecord(**given.model.describe()),
        edit=EditRecord(
            name=name, sha256=given.edit.digest(),
            hyperparameters=plain_json(settings if isinstance(settings, dict) else {}, "edit's hyper-parameters"),
        ),
        vectors_sha256=None if given.vectors is None else given.vectors.digest(),
        suite=options.suite,
        settings=asdict(options) | ({} if given.judge is None else {"judge": given.judge.describe()}),
        prompts={
            "harmful": _prompts(options.harmful, given.harmful), "benign": _prompts(options.benign, given.benign),
        },
        arms=[ArmRecord(kind=a.kind, label=a.label, parameters=dict(a.parameters)) for a in subject.arms],
        steering=steering, verdict=judge(plain.lines, BASE_ARM.label, EDIT_LABEL),
        contract=contract_of(plain, entries, lowers=subject.lowers), plain=plain, tests=entries,
        summary=summarise(plain, entries, [f"Not asked for: {', '.join(left)}."] if left else []),
    )  # fmt: skip


def _prompts(source: str | None, prompts: Sequence[str]) -> PromptsRecord:
    digest = sha256(" ".join(prompt_digests(prompts)).encode()).hexdigest()
    return PromptsRecord(source=source or "built in, held out", n=len(prompts), sha256=digest)


def _entry(test: StressTest, found: StressResult | None, subject: Subject, message: str = "") -> Entry:
    result = found or StressResult([])
    message = "" if result.findings else message or "it found nothing to report."
    return Entry(
        name=test.name, group=PLAIN if test is _PLAIN_TEST else test.group, summary=test.summary,
        citation=test.citation, tested=not message, message=message, seconds=None if found is None else found.seconds,
        lines=[Line.of(one, subject.arms) for one in result.findings], facts=dict(result.facts),
    )  # fmt: skip


def _begun(given: StressInput, results: StressFolder, narrate: Narrate) -> tuple[Subject, str]:
    """The subject, with its arms at equal drift, plain replies and as many requests as tell; and what was matched.

    The base's and the edit's plain replies come first: they say which way the edit goes.
    """
    engine, strength = RememberingEngine(given.engine), given.options.strength
    bare = given.subject(engine)
    bare = replace(bare, harmful=spread(bare.harmful, bare.pick(_QUICK_REQUESTS, len(bare.harmful))))
    harmful = results.keep(PLAIN, "own", lambda: ask(bare, bare.harmful, parts=in_form()))
    gain = paired(harmful.refused[bare.edited], harmful.refused[bare.base])
    lowers = gain.below(0)
    methods = methods_of(given.model, given.edit, given.vectors, strength, lowers=lowers)
    compare = partial(equal_drift, engine, Editing(given.edit, strength), methods, given.benign, given.sampling)
    steering = EqualDrift(**results.once("steering", lambda: asdict(compare())))
    narrate(steering.note)
    compared = [arm_of(name, methods[name][0](size), size) for name, size in steering.strengths.items()]
    subject = replace(given.subject(engine, compared), harmful=bare.harmful, lowers=lowers)
    remembering = RememberingEngine(given.engine, list(subject.interventions.values()), engine.replies)  # the base's
    subject = replace(subject, engine=remembering)
    if compared:
        arms = {arm.label: arm.intervention for arm in compared}
        harmful |= results.keep(PLAIN, "compared", lambda: ask(subject, subject.harmful, arms=arms, parts=in_form()))
    harmful = replace(harmful, arms={label: harmful.arms[label] for label in subject.interventions})
    subject = replace(subject, plain=harmful, limit=requests_of(gain, subject))
    narrate(f"Each line asks {len(subject.requests)} requests, so that a fall by half is detected.")
    return subject, steering.note


def _plain(subject: Subject, results: StressFolder, narrate: Narrate) -> StressResult:
    """What the plain prompts show, from the plain replies that the subject has."""
    begin, found = time.monotonic(), results.find(PLAIN)
    if found is None:
        found = _PLAIN_TEST.run(subject)
        seconds = time.monotonic() - begin + (subject.plain.seconds if subject.plain else 0.0)
        found = results.write(PLAIN, replace(found, seconds=round(seconds, 2)), keep_asked=True)
    narrate(found.findings[0].sentence)
    return found


def requests_of(gain: Estimate, subject: Subject) -> int:
    """How many requests a line asks: as many as detect a fall by half, in the full suite twice as many."""
    wanted = requests_for(abs(gain.value or 0.0)) or len(subject.harmful)
    return min(len(subject.harmful), max(_LEAST_REQUESTS, subject.pick(1, 2) * wanted))


def _run(subject: Subject, tests: Sequence[StressTest], results: StressFolder, narrate: Narrate) -> dict[str, str]:
    """Run the tests that are not done yet; why those could not be run that could not."""
    todo, messages = [test for test in tests if results.find(test.name) is None], {}
    if 0 < len(todo) < len(tests):
        narrate(f"Going on: {len(tests) - len(todo)} of {len(tests)} tests are done.")
    with step("Stress tests", len(todo)) as advance:
        for test in todo:
            narrate(f"{test.name}: {test.summary}")
            found = _attempt(test, subject, results)
            if isinstance(found, str):
                messages[test.name] = found
            narrate(f"  not tested: {found}" if isinstance(found, str) else f"  {found.seconds:.0f} s")
            advance(1)
    return messages


def _attempt(test: StressTest, subject: Subject, results: StressFolder) -> StressResult | str:
    """What a test finds, with random numbers that depend on the seed alone; or why it could not be run.

    An error that is no `Steer2EditError` is a fault of the test or of what it runs, and the traceback is written into
    the run folder.
    """
    begin, device, errors = time.monotonic(), subject.model.device, results.path / "errors" / f"{test.name}.txt"
    asked = (results.path / "asked" / test.name).glob("*.json")  # of an earlier call, whose seconds count
    before = sum(float(json.loads(path.read_bytes())["seconds"]) for path in asked)
    errors.unlink(missing_ok=True)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(subject.seed)
        try:
            result = test.run(replace(subject, keep=partial(results.keep, test.name)))
            return results.write(test.name, replace(result, seconds=round(before + time.monotonic() - begin, 2)))
        except Steer2EditError as error:
            return str(error)
        except Exception as error:  # a faulty test shall not cost what the others find
            if out_of_memory(error):
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                return "memory ran out. Use a smaller dtype (--dtype bfloat16), a smaller --limit, or a larger device."
            with atomic_file(errors, overwrite=True) as scratch:
                text = "".join(traceback.format_exception(error))
                scratch.write_text(text, encoding="utf-8", errors="backslashreplace")
            fault = f"{type(error).__name__}: {error}"
            return f"it failed, which is a fault of the test: {fault}. The traceback is in {errors}."
