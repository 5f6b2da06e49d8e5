"""A stress run from start to end, in a run folder that a killed run goes on from."""

from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from steer2edit.artifacts import package_versions
from steer2edit.artifacts.manifest import BaseModelRecord, now, plain_json
from steer2edit.artifacts.run_folder import write_json
from steer2edit.engines import RememberingEngine
from steer2edit.evaluation import BASE_ARM
from steer2edit.steering import prompt_digests
from steer2edit.stress.attack_lines import STATIC_TOGETHER, TOGETHER_SUMMARY, together_finding
from steer2edit.stress.equal_drift import EqualDrift, equal_drift
from steer2edit.stress.findings import GROUPS, Finding
from steer2edit.stress.folder import StressFolder
from steer2edit.stress.options import EDIT_LABEL, StressInput
from steer2edit.stress.runner import PLAIN, Done, Narrate, Runner
from steer2edit.stress.scorecard import ArmRecord, EditRecord, Entry, Line, PromptsRecord, Scorecard, summarise
from steer2edit.stress.static_attacks.static import ask_plain
from steer2edit.stress.subject import StressTest, Subject
from steer2edit.stress.whole_verdict import judge

SCORECARD_FILE = "scorecard.json"


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
    with StressFolder(out).opened(given.identity()) as results:
        steering = EqualDrift(**results.once("steering", lambda: asdict(_steering(given))))
        narrate(steering.note)
        engine = RememberingEngine(given.engine, [arm.intervention for arm in given.arms(steering.strength)])
        subject = given.subject(engine, steering.strength, out)
        runner = Runner(subject, engine, results, narrate)
        plain, seconds = runner.plain()
        narrate(plain.findings[0].sentence)
        done = [*runner.run(tests), *runner.done_before(others)]
        done.sort(key=lambda one: list(GROUPS).index(one.test.group))
        left = [test for test in others if test not in [one.test for one in done]]
        together = _together(subject, done)
        findings = [finding for one in done if one.result is not None for finding in one.result.findings]
        verdict = judge(plain.findings, [*findings, *together], BASE_ARM.label, EDIT_LABEL)
        first = Entry(
            name=PLAIN, group=PLAIN, seconds=seconds, citation="this project",
            summary="The prompts as they are: refusals, drift from the base, repetition and empty replies.",
            lines=[Line.of(one, subject.arms) for one in plain.findings], facts=dict(plain.facts),
        )  # fmt: skip
        entries = [_entry(one, subject) for one in done]
        entries += [
            Entry(name=STATIC_TOGETHER, group="static", summary=TOGETHER_SUMMARY, citation="this project",
                  lines=[Line.of(one, subject.arms)]) for one in together
        ]  # fmt: skip
        card = Scorecard(
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
            steering=steering.note,
            verdict=verdict,
            plain=first,
            tests=entries,
            summary=summarise(first, entries, _left_out(left, given.options.suite)),
        )
        write_json(out / SCORECARD_FILE, card.to_json())
        return card


def _steering(given: StressInput) -> EqualDrift:
    """Steering at equal drift."""
    options, engine = given.options, RememberingEngine(given.engine)
    return equal_drift(engine, given.edit, given.vectors, given.benign, options.sampling, strength=options.strength)


def _at(strength: float) -> str:
    return "" if strength == 1 else f", at strength {strength:g}"


def _entry(done: Done, subject: Subject) -> Entry:
    test, result = done.test, done.result
    message = done.message if result is None or result.findings else "it found nothing to report."
    return Entry(
        name=test.name, group=test.group, summary=test.summary, citation=test.citation,
        tested=not message, message=message, seconds=done.seconds,
        lines=[] if result is None else [Line.of(one, subject.arms) for one in result.findings],
        facts={} if result is None else dict(result.facts),
    )  # fmt: skip


def _together(subject: Subject, done: Sequence[Done]) -> list[Finding]:
    """The static attacks in the clear together, if there are several; they are all on the same requests.

    The plain replies that they are compared with are remembered, and scored in the same way as those to the attacks.
    """
    attacked = [
        finding
        for one in done
        if one.result is not None
        for finding in one.result.findings
        if finding.name in one.test.pooled
    ]
    if len(attacked) < 2:
        return []
    plain = ask_plain(subject, subject.some(subject.harmful)).refused
    return [together_finding(attacked, plain, subject.base, subject.steered, subject.edited)]


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
