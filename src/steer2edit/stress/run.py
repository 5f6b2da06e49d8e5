"""A stress run from start to end, in a run folder that a killed run goes on from."""

from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from steer2edit.artifacts import package_versions
from steer2edit.artifacts.manifest import BaseModelRecord, now, plain_json
from steer2edit.artifacts.run_folder import RunKind, run_folder, write_json
from steer2edit.engines import RememberingEngine
from steer2edit.evaluation import BASE_ARM
from steer2edit.steering import prompt_digests
from steer2edit.stress.asking import some
from steer2edit.stress.attacked import ask
from steer2edit.stress.equal_drift import EqualDrift, equal_drift
from steer2edit.stress.kept import KeptResults
from steer2edit.stress.registry import RESERVED, STATIC_TOGETHER
from steer2edit.stress.runner import Done, Narrate, Runner
from steer2edit.stress.scorecard import (
    ArmRecord,
    EditRecord,
    EntryRecord,
    PromptsRecord,
    Scorecard,
    VerdictRecord,
    line_record,
    summarise,
)
from steer2edit.stress.static_attacks.pooled import SUMMARY, pooled_finding
from steer2edit.stress.static_attacks.static import StaticAttack
from steer2edit.stress.stress_test import GROUPS, Finding, StressResult, StressTest, Subject, Suite
from steer2edit.stress.subject import EDIT_LABEL, StressInput
from steer2edit.stress.verdict import RULES, judge

SCORECARD_FILE = "scorecard.json"
_KIND = RunKind("stress run", 1, "testing", "model, edit, prompts and options")
_PLAIN = "The prompts as they are: refusals, drift from the base, repetition and empty replies."


def run_stress(
    given: StressInput,
    tests: Sequence[StressTest],
    out: Path,
    narrate: Narrate,
    *,
    others: Sequence[StressTest] = (),
    name: str = "the edit",
    command: str = "",
) -> Scorecard:
    """Run tests in the run folder `out`, going on where an earlier call was stopped, and write `scorecard.json`.

    A test that cannot be run here is listed as not tested, and tried again by the next call.

    Args:
        given: what is tested and with what.
        tests: the tests.
        out: the run folder.
        narrate: told what is done, step by step.
        others: tests that there are besides: what the folder has of them is in the scorecard too, the rest is named
            among what was not tested.
        name: of the edit, for people.
        command: what the user typed, for the record.

    Raises:
        MismatchError: the folder holds another run.
        ArtifactError: another process works in it, or it cannot be written.
    """
    with run_folder(out, _KIND, given.identity()):
        kept = KeptResults(out)
        steering = _steering(given, kept)
        narrate(steering.note)
        engine = RememberingEngine(given.engine, [arm.intervention for arm in given.arms(steering.strength)])
        subject = given.subject(engine, steering.strength, out)
        runner = Runner(subject, engine, given.options.suite, kept, narrate)
        plain = runner.plain()
        narrate(plain[0].findings[0].sentence)
        done = [*runner.run(tests), *runner.done_before(others)]
        done.sort(key=lambda one: GROUPS.index(one.test.group))
        left = [test for test in others if test not in [one.test for one in done]]
        pooled = _pooled(subject, done, given.options.suite)
        card = _scorecard(given, subject, plain, done, pooled, steering.note, left, name, command)
        write_json(out / SCORECARD_FILE, card.to_json())
        return card


def _steering(given: StressInput, kept: KeptResults) -> EqualDrift:
    """Steering at equal drift, found once."""

    def find() -> dict[str, object]:
        options = given.options
        engine = RememberingEngine(given.engine)
        return asdict(
            equal_drift(engine, given.edit, given.vectors, given.benign, options.sampling, strength=options.strength)
        )

    return EqualDrift(**kept.once("steering", find))


def _scorecard(
    given: StressInput,
    subject: Subject,
    plain: tuple[StressResult, float],
    done: Sequence[Done],
    pooled: Finding | None,
    steering: str,
    left: Sequence[StressTest],
    name: str,
    command: str,
) -> Scorecard:
    first = _plain_entry(*plain, subject)
    entries = [_entry(one, subject) for one in done]
    if pooled is not None:
        entries.append(_pooled_entry(pooled, subject))
    return Scorecard(
        title=f"Stress tests of {name}, an edit of {given.model.name}{_at(given.options.strength)}",
        created=now(),
        command=command,
        versions=package_versions(),
        model=BaseModelRecord(**given.model.describe()),
        edit=_edit(given, name),
        vectors_sha256=None if given.vectors is None else given.vectors.digest(),
        suite=given.options.suite,
        settings=given.options.to_json() | ({} if given.judge is None else {"judge": given.judge.describe()}),
        prompts={
            "harmful": _prompts(given.options.harmful, given.harmful),
            "benign": _prompts(given.options.benign, given.benign),
        },
        arms=[ArmRecord(kind=a.kind, label=a.label, parameters=dict(a.parameters)) for a in subject.arms],
        steering=steering,
        verdict=_verdict(plain[0], done, pooled),
        plain=first,
        tests=entries,
        summary=summarise(first, entries, _left_out(left, given.options.suite)),
    )


def _at(strength: float) -> str:
    return "" if strength == 1 else f", at strength {strength:g}"


def _plain_entry(result: StressResult, seconds: float, subject: Subject) -> EntryRecord:
    return EntryRecord(
        name=RESERVED, group=RESERVED, summary=_PLAIN, citation="this project", tested=True, message="",
        seconds=seconds,
        lines=[line_record(one, subject.arms) for one in result.findings], facts=dict(result.facts),
    )  # fmt: skip


def _entry(done: Done, subject: Subject) -> EntryRecord:
    test, result = done.test, done.result
    message = done.message if result is None or result.findings else "it found nothing to report."
    return EntryRecord(
        name=test.name, group=test.group, summary=test.summary, citation=test.citation,
        tested=not message, message=message, seconds=done.seconds,
        lines=[] if result is None else [line_record(one, subject.arms) for one in result.findings],
        facts={} if result is None else dict(result.facts),
    )  # fmt: skip


def _pooled(subject: Subject, done: Sequence[Done], suite: Suite) -> Finding | None:
    """The static attacks in the clear together, if there are several; they are all on the same requests.

    The plain replies that they are compared with are remembered, and scored in the same way as those to the attacks.
    """
    attacked = [
        finding
        for one in done
        if isinstance(one.test, StaticAttack) and one.result
        for finding, attack in zip(one.result.findings, one.test.attacks(suite), strict=True)
        if not attack.hides
    ]
    if len(attacked) < 2:
        return None
    requests = some(subject, suite, subject.harmful)
    return pooled_finding(attacked, ask(subject, requests, requests).refused, subject.arms)


def _pooled_entry(found: Finding, subject: Subject) -> EntryRecord:
    return EntryRecord(
        name=STATIC_TOGETHER, group="static", summary=SUMMARY, citation="this project", tested=True, message="",
        seconds=None, lines=[line_record(found, subject.arms)], facts={},
    )  # fmt: skip


def _verdict(plain: StressResult, done: Sequence[Done], pooled: Finding | None) -> VerdictRecord:
    findings = [finding for one in done if one.result is not None for finding in one.result.findings]
    findings += [] if pooled is None else [pooled]
    found = judge(plain.findings, findings, BASE_ARM.label, EDIT_LABEL)
    rules = {str(kind): rule for kind, rule in RULES.items()}
    return VerdictRecord(kind=found.kind, sentence=found.sentence, reasons=list(found.reasons), rules=rules)


def _edit(given: StressInput, name: str) -> EditRecord:
    settings = given.edit.metadata.get("hyperparameters")
    plain = plain_json(settings, "edit's hyper-parameters") if isinstance(settings, dict) else {}
    return EditRecord(name=name, sha256=given.edit.digest(), hyperparameters=plain)


def _prompts(source: str | None, prompts: Sequence[str]) -> PromptsRecord:
    digest = sha256(" ".join(prompt_digests(prompts)).encode()).hexdigest()
    return PromptsRecord(source=source or "built in, held out", n=len(prompts), sha256=digest)


def _left_out(left: Sequence[StressTest], suite: str) -> list[str]:
    """What was not asked for, in a sentence or two."""
    full = [test.name for test in left if suite not in test.suites]
    asked = [test.name for test in left if suite in test.suites]
    sentences = [f"In the other suite only: {', '.join(full)}."] if full else []
    return sentences + ([f"Not asked for: {', '.join(asked)}."] if asked else [])
