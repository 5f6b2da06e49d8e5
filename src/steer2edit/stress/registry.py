"""Which stress tests there are: rows of `tests.toml`, the families of attacks, and files of ready attack prompts."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from pkgutil import resolve_name

from steer2edit.errors import DataError, did_you_mean
from steer2edit.steering.transformation import Transformation
from steer2edit.stress.attack_files import AttackFile, read_attacks
from steer2edit.stress.attacks import data_tables, families
from steer2edit.stress.conditions import worded
from steer2edit.stress.findings import GROUPS, Group, StressResult
from steer2edit.stress.subject import Subject, ask, by_arm, in_form
from steer2edit.stress.verdicts import attribute_line


@dataclass(frozen=True)
class StressTest:
    """A test of an edit: a row of the table."""

    name: str  # unique, lower case with dashes
    group: Group  # which part of the scorecard it belongs to
    summary: str  # one line of what it does
    citation: str  # where the attack or the measure was published, or `this project`
    # tests the subject. A `Steer2EditError` says why it cannot be run here and what would help: the scorecard then
    # lists it as not tested
    run: Callable[[Subject], StressResult]
    contract: bool = False  # whether it belongs to the contract; other tests are asked for by name


def all_tests() -> list[StressTest]:
    """All tests, in the order of the scorecard."""
    tests = [
        StressTest(name, run=resolve_name(f"steer2edit.stress.{row.pop('run')}"), **row)
        for name, row in data_tables("tests").items()
    ]
    for one in families():
        own = one.group != "static"
        run = partial(worded, name=one.name, attacks=one.attacks, decides=own)
        tests.append(StressTest(one.name, one.group, one.summary, one.citation, run, contract=own))
    return sorted(tests, key=lambda test: list(GROUPS).index(test.group))


def choose_tests(tests: Iterable[StressTest], only: Sequence[str] = ()) -> list[StressTest]:
    """The tests of the contract, or those that are asked for, by their name or a group's; else a DataError."""
    known = {test.name: test for test in tests}
    for name in only:
        if name not in (names := [*known, *GROUPS]):
            raise DataError(f"there is no stress test {name!r}. {did_you_mean(name, names)}")
    return [test for test in known.values() if ({test.name, test.group} & set(only) if only else test.contract)]


def file_test(path: Path | str) -> tuple[StressTest, list[str]]:
    """(the test of a file of attacks, the requests that the file names); the formats are those of `read_attacks`.

    The test has a line for the file's ready prompts, or for its suffixes or templates with the subject's own requests.
    Its name ends with the digest of what the file holds: a changed file is another test of a run.
    """
    stem = re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-") or "prompts"
    held = read_attacks(path)
    digest = sha256(repr(([tuple(one) for one in held.prompts], held.templates)).encode()).hexdigest()
    name, count = f"attack-file-{stem}-{digest[:8]}", len(held.prompts or held.templates)
    run = partial(from_prompts, name=name, held=held)
    if held.templates:
        ways = [Transformation(f"{name}/{i}", template) for i, template in enumerate(held.templates, 1)]
        run = partial(worded, name=name, attacks=ways)
    summary = f"{held.format}: {count} {'prompts' if held.prompts else 'templates'} of a file"
    requests = [prompt.request for prompt in held.prompts if prompt.request is not None]
    return StressTest(name, "attacks", summary, held.citation, run, contract=True), requests


def from_prompts(subject: Subject, name: str, held: AttackFile) -> StressResult:
    """Refusals of ready prompts, beside those of their requests as they are where all of those are known."""
    prompts = subject.sample(held.prompts, subject.limit or len(held.prompts))
    texts, requests = [prompt.text for prompt in prompts], [prompt.request for prompt in prompts]
    known = [request for request in requests if request is not None]
    kept = {name: subject.keep(name, lambda: ask(subject, texts, requests, parts=in_form()))}
    if len(known) == len(prompts):
        kept["plain"] = subject.keep(f"{name}-plain", lambda: ask(subject, known, parts=in_form()))
    plain, what = kept.get("plain"), f"{len(prompts)} prompts of the file"
    line = attribute_line(subject, name, what, kept[name], plain, decides=plain is not None, note=held.note)
    return StressResult([line], by_arm(kept))
