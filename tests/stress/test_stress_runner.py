"""A run: every test kept as soon as it is finished, going on after a kill, and what a run folder refuses."""

import importlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_stress import OPTIONS, MissingError, ToyTest, files, random_vectors, tiny_edit, tiny_input, tiny_model

from steer2edit.core import WeightEdit
from steer2edit.editing import merged
from steer2edit.engines import TransformersEngine
from steer2edit.errors import ArtifactError, DataError, InvalidValueError, MismatchError
from steer2edit.estimates import Estimate
from steer2edit.models import generate
from steer2edit.settings import StressOptions
from steer2edit.steering.examples import prompt_digests
from steer2edit.steering.presets import safety_prompts
from steer2edit.stress.findings import StressResult
from steer2edit.stress.given import StressInput
from steer2edit.stress.registry import StressTest
from steer2edit.stress.run import requests_of, run_stress
from steer2edit.stress.scorecard import Scorecard
from steer2edit.stress.subject import Replies, Scored, Subject
from steer2edit.stress.verdicts import attribute_line

SCRIPT = Path(__file__).with_name("killed_stress.py")


def go(given: StressInput, tests: list[ToyTest], out: Path, **more: Any) -> tuple[Scorecard, list[str]]:
    told: list[str] = []
    return run_stress(given, tests, out, told.append, **more), told


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scorecard, list[str]]:
    """Steering, two tests and one that cannot be run; nobody changes it."""
    out = tmp_path_factory.mktemp("stress") / "run"
    tests = [ToyTest("one"), ToyTest("missing", error=MissingError("pip install toy")), ToyTest("two")]
    return out, *go(tiny_input(steering=True), tests, out)


class TestWhatIsKept:
    def test_results_and_replies_apart(self, finished: tuple[Path, Scorecard, list[str]]) -> None:
        out, card, _ = finished
        assert sorted(p.name for p in (out / "tests").iterdir()) == ["one.json", "plain.json", "two.json"]
        assert sorted(p.name for p in (out / "replies").iterdir()) == ["one.json", "plain.json", "two.json"]
        assert sorted(p.name for p in (out / "asked").rglob("*.json")) == ["compared.json", "own.json"]
        replies = json.loads((out / "replies" / "one.json").read_text())["replies"]
        assert list(replies) == [arm.label for arm in card.arms]
        assert len(replies["edit"]["letters"]) == 3
        stored = json.loads((out / "tests" / "one.json").read_text())
        assert "replies" not in stored
        assert (stored["facts"]["budget"], stored["facts"]["loss"]) == (3, None)

    def test_what_cannot_be_run_is_not_tested(self, finished: tuple[Path, Scorecard, list[str]]) -> None:
        _, card, told = finished
        (entry,) = [test for test in card.tests if not test.tested]
        assert (entry.name, entry.message, entry.lines) == ("missing", "pip install toy", [])
        assert "missing: pip install toy" in card.summary["not_tested"]
        assert any("pip install toy" in text for text in told)

    def test_steering_at_equal_drift(self, finished: tuple[Path, Scorecard, list[str]]) -> None:
        out, card, told = finished
        assert [arm.kind for arm in card.arms] == ["base", "steering", "baseline", "edit"]
        found = json.loads((out / "steering.json").read_text())
        assert set(found["drifts"]) == {"steering", "ROSI"}
        for drift in found["drifts"].values():
            assert drift == pytest.approx(found["edit_drift"], rel=0.1)
        assert told[0].startswith("Drift as much as the edit")
        drift = next(line for line in card.plain.lines if line.name == "drift")
        assert drift.arms["edit"].value == pytest.approx(found["edit_drift"], rel=0.01)
        assert drift.arms["base"].value == 0

    def test_what_is_done_is_told_and_what_it_took_is_recorded(
        self, finished: tuple[Path, Scorecard, list[str]]
    ) -> None:
        out, card, told = finished
        assert "one: a toy" in told
        assert card.tests[0].seconds == json.loads((out / "tests" / "one.json").read_text())["seconds"]
        assert card.contract.conditions[0].seconds == round(card.plain.seconds, 1)  # type: ignore[arg-type]


class TestGoingOn:
    def test_nothing_is_run_twice_but_what_could_not_be(
        self, finished: tuple[Path, Scorecard, list[str]], tmp_path: Path
    ) -> None:
        out = Path(shutil.copytree(finished[0], tmp_path / "run"))
        tests = [ToyTest("one"), ToyTest("missing"), ToyTest("two"), ToyTest("three")]
        card, _ = go(tiny_input(steering=True), tests, out)
        assert [test.ran for test in tests] == [[], ["missing"], [], ["three"]]
        assert [test.tested for test in card.tests] == [True] * 4
        before = {test.name: test.lines for test in finished[1].tests}
        assert card.tests[0].lines == before["one"]
        assert card.plain.lines == finished[1].plain.lines

    def test_a_test_finds_the_same_whatever_ran_before_it(self, tmp_path: Path) -> None:
        """Its own random numbers, and no replies remembered from another test."""
        given = tiny_input()
        torch.manual_seed(5)
        go(given, [ToyTest("one"), ToyTest("two")], tmp_path / "both")
        torch.manual_seed(6)
        go(given, [ToyTest("two")], tmp_path / "alone")
        both, alone = files(tmp_path / "both"), files(tmp_path / "alone")
        assert both["tests/two.json"] == alone["tests/two.json"]
        assert both["tests/one.json"]["findings"] == both["tests/two.json"]["findings"]

    def test_plain_replies_are_not_made_again(
        self, finished: tuple[Path, Scorecard, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A run that goes on has every arm's plain replies, token by token, from the folder."""
        out = Path(shutil.copytree(finished[0], tmp_path / "run"))
        given = tiny_input(steering=True)
        prompts: list[object] = []
        inner = TransformersEngine.generate

        def noted(self: TransformersEngine, requests: Any, *more: Any, **options: Any) -> Any:
            prompts.extend(request.prompt for request in requests)
            return inner(self, requests, *more, **options)

        monkeypatch.setattr(TransformersEngine, "generate", noted)
        same, shouted = ToyTest("same", attack=str), ToyTest("shouted")
        go(given, [ToyTest("one"), same, shouted], out)
        assert (same.ran, shouted.ran) == (["same"], ["shouted"])
        assert prompts == [attack(p) for attack in (str, str.upper) for _ in range(4) for p in given.harmful]

    def test_a_line_that_was_asked_is_not_asked_again(self, tmp_path: Path) -> None:
        """A test that is killed between two lines goes on with the second; what the first took counts."""
        asked: list[str] = []

        def two_lines(subject: Subject, broken: bool) -> StressResult:
            def ask(line: str) -> Replies:
                asked.append(line)
                if broken and line == "b":
                    raise ZeroDivisionError
                return Replies({arm: [Scored(line, True)] for arm in subject.interventions}, seconds=5.0)

            found = {line: subject.keep(line, partial(ask, line)) for line in ("a", "b")}
            return StressResult([attribute_line(subject, n, n, own, None) for n, own in found.items()])

        for broken in (True, False):
            test = StressTest("lines", "attacks", "s", "c", partial(two_lines, broken=broken))
            card, _ = go(tiny_input(), [test], tmp_path / "run")  # type: ignore[list-item]
        assert asked == ["a", "b", "b"]
        (entry,) = card.tests
        assert entry.tested
        assert [line.seconds for line in entry.lines] == [5.0, 5.0]
        assert entry.seconds is not None
        assert entry.seconds >= 5.0
        assert not (tmp_path / "run" / "asked" / "lines").exists()

    def test_plain_replies_that_are_damaged_are_said(
        self, finished: tuple[Path, Scorecard, list[str]], tmp_path: Path
    ) -> None:
        out = Path(shutil.copytree(finished[0], tmp_path / "run"))
        (out / "asked" / "plain" / "own.json").write_text("{}")
        with pytest.raises(ArtifactError, match=r"own.json does not hold what a run writes there"):
            go(tiny_input(steering=True), [ToyTest("one")], out)

    def test_a_faulty_test_does_not_cost_the_others(self, tmp_path: Path) -> None:
        bug = ToyTest("bug", error=ZeroDivisionError("by nothing"))
        card, told = go(tiny_input(), [ToyTest("one"), bug, ToyTest("two")], tmp_path / "run")
        assert [(test.name, test.tested) for test in card.tests] == [("one", True), ("bug", False), ("two", True)]
        (said,) = [text for text in told if "ZeroDivisionError" in text]
        assert "it failed, which is a fault of the test: ZeroDivisionError: by nothing." in said
        kept = (tmp_path / "run" / "errors" / "bug.txt").read_text()
        assert kept.startswith("Traceback (most recent call last):")
        assert "by nothing" in kept
        again = ToyTest("one")
        card, told = go(tiny_input(), [again, ToyTest("bug"), ToyTest("two")], tmp_path / "run")
        assert again.ran == []
        assert "Going on: 2 of 3 tests are done." in told
        assert [test.tested for test in card.tests] == [True] * 3
        assert not (tmp_path / "run" / "errors" / "bug.txt").exists()

    def test_memory_that_runs_out_is_said(self, tmp_path: Path) -> None:
        full = ToyTest("full", error=torch.OutOfMemoryError("CUDA out of memory"))
        card, _ = go(tiny_input(), [full, ToyTest("one")], tmp_path / "run")
        assert [test.tested for test in card.tests] == [False, True]
        assert card.tests[0].message.startswith("memory ran out. Use a smaller dtype")
        assert not (tmp_path / "run" / "errors").exists()

    def test_what_earlier_calls_found_stays_in_the_scorecard(self, tmp_path: Path) -> None:
        one, two, heads = ToyTest("one"), ToyTest("two"), ToyTest("heads", group="causal")
        go(tiny_input(), [one, heads], tmp_path / "run", others=[two])
        card, _ = go(tiny_input(), [two], tmp_path / "run", others=[one, heads, ToyTest("three")])
        assert [test.name for test in card.tests] == ["two", "one", "heads"]  # by group
        assert all(test.tested for test in card.tests)
        assert one.ran == ["one"]
        assert "Not asked for: three." in card.summary["not_tested"]

    @pytest.mark.slow
    def test_killed_anywhere_it_ends_with_the_same_files(self, tmp_path: Path) -> None:
        """SIGKILL at many places; the script says how often."""
        done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        kills = json.loads(done.stdout)
        assert len(kills) == 6
        assert len(set(kills)) >= 3
        alone, killed = files(tmp_path / "alone"), files(tmp_path / "killed")
        assert sorted(alone) == sorted(killed)
        assert alone == killed
        assert not list((tmp_path / "killed").rglob("*.partial"))


class TestAttacksAreMade:
    """Replies of a run against replies of the merged weights to the attacked prompts, made here."""

    @staticmethod
    def check(attack: Callable[[str], str], out: Path) -> None:
        given = tiny_input(2.0)
        go(given, [ToyTest("shouting", attack=attack)], out)
        kept = json.loads((out / "replies" / "shouting.json").read_text())["replies"]
        prompts = [prompt.upper() for prompt in given.harmful]
        base = [reply.text for reply in generate(given.model, prompts, given.sampling)]
        with merged(given.model, given.edit):
            edited = [reply.text for reply in generate(given.model, prompts, given.sampling)]
        assert edited != base
        assert (kept["base"]["letters"], kept["edit"]["letters"]) == (base, edited)

    def test_on_every_arm(self, tmp_path: Path) -> None:
        self.check(str.upper, tmp_path / "run")

    @pytest.mark.parametrize("regression", [str, str.lower, lambda prompt: prompt.upper() + "!"])
    def test_a_planted_regression_is_caught(self, regression: Callable[[str], str], tmp_path: Path) -> None:
        with pytest.raises(AssertionError):
            self.check(regression, tmp_path / "run")


def test_the_strength_is_that_of_the_edit(tmp_path: Path) -> None:
    """Tested at 0.05 it is the edit scaled by 0.05, near 0 it is the base, and at 0 nothing would be tested."""
    scaled, _ = go(tiny_input(0.05, steering=True), [ToyTest("one")], tmp_path / "scaled")
    options = replace(OPTIONS, strength=0.05)
    tested, _ = go(tiny_input(1.0, options=options, steering=True), [ToyTest("one")], tmp_path / "tested")
    assert tested.arms[1] == scaled.arms[1]
    assert tested.arms[3].parameters["strength"] == 0.05
    ours, theirs = (card.plain.lines + card.tests[0].lines for card in (tested, scaled))
    for one, other in zip(ours, theirs, strict=True):
        assert one.arms["edit"].value == pytest.approx(other.arms["edit"].value, rel=1e-4)
    nothing, _ = go(tiny_input(1.0, options=replace(OPTIONS, strength=1e-9)), [ToyTest("one")], tmp_path / "nothing")
    assert nothing.verdict.kind == "no-effect"
    with pytest.raises(MismatchError, match="strength"):
        go(tiny_input(1.0, options=options), [ToyTest("one")], tmp_path / "nothing")
    opposite, _ = go(
        tiny_input(1.0, options=replace(OPTIONS, strength=-0.05), steering=True), [], tmp_path / "opposite"
    )
    assert opposite.arms[1].parameters["strength"] < 0  # steering away, as the edit does
    assert opposite.title.endswith(", at strength -0.05")
    with pytest.raises(InvalidValueError, match="strength must be finite, got nan"):
        replace(OPTIONS, strength=float("nan"))
    with pytest.raises(InvalidValueError, match="strength must not be 0, got 0: at 0 there is the base alone"):
        replace(OPTIONS, strength=0.0)


def test_how_many_requests_a_line_asks() -> None:
    """As many as detect a fall by half; not fewer than 24, not more than there are; in the full suite twice as many."""
    subject = replace(tiny_input().subject(tiny_input().engine), harmful=[str(i) for i in range(96)])
    gain = Estimate(0.5, 0.3, 0.7, 96)
    assert requests_of(gain, subject) == 30
    assert requests_of(replace(gain, value=-0.5), subject) == 30  # an edit that lowers refusals
    assert requests_of(replace(gain, value=0.9), subject) == 24
    assert requests_of(replace(gain, value=0.01), subject) == requests_of(replace(gain, value=0.0), subject) == 96
    assert requests_of(gain, replace(subject, suite="full")) == 60


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "stress.md").read_text()
    (tmp_path / "shouting.py").write_text(guide.partition("```python\n")[2].partition("```")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    row = tomllib.loads(guide.partition("```toml\n")[2].partition("```")[0])["shouting"]
    test = StressTest(name="shouting", **{**row, "run": importlib.import_module("shouting").shouting})
    card, _ = go(tiny_input(), [test], tmp_path / "run")  # type: ignore[list-item]
    (entry,) = card.tests
    assert entry.tested
    assert [line.name for line in entry.lines] == ["capitals"]


class TestRefused:
    @pytest.mark.parametrize(
        ("other", "what"),
        [
            (lambda: tiny_input(0.1), "edit"),
            (lambda: tiny_input(options=StressOptions(limit=2, max_new_tokens=2)), "limit"),
            (lambda: tiny_input(options=StressOptions("full", limit=3, max_new_tokens=2)), "suite"),
            (lambda: tiny_input(options=StressOptions(limit=3, max_new_tokens=2, seed=1)), "seed"),
        ],
    )
    def test_another_run_in_the_same_folder(self, other: Any, what: str, tmp_path: Path) -> None:
        go(tiny_input(), [], tmp_path / "run")
        with pytest.raises(MismatchError, match=rf"belongs to another stress run. It differs in: .*{what} \("):
            go(other(), [], tmp_path / "run")

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("keep me")
        with pytest.raises(ArtifactError, match="holds something that is no stress run"):
            go(tiny_input(), [], tmp_path)

    def test_a_damaged_result(self, tmp_path: Path) -> None:
        go(tiny_input(), [ToyTest("one")], tmp_path / "run")
        (tmp_path / "run" / "tests" / "one.json").write_text('{"schema_version": 2, "findings": [{}]}')
        with pytest.raises(ArtifactError, match=r"one\.json does not hold what a run writes there.*remove it"):
            go(tiny_input(), [ToyTest("one")], tmp_path / "run")

    def test_an_edit_of_another_model(self) -> None:
        model = tiny_model()
        edit = tiny_edit(model, random_vectors(model))
        with pytest.raises(MismatchError, match="fingerprint"):
            StressInput(TransformersEngine(tiny_model(seed=3)), edit, OPTIONS)

    def test_prompts_that_the_vectors_were_made_from(self) -> None:
        given = tiny_input()
        seen = prompt_digests(safety_prompts("held_out")[0][:1])
        edit = WeightEdit(given.edit.sites, {**given.edit.metadata, "vectors": {"prompts": seen}})
        with pytest.raises(DataError, match="1 prompts are among both the vector and the stress prompts"):
            StressInput(given.engine, edit, OPTIONS)

    def test_a_prompt_in_both_files(self, tmp_path: Path) -> None:
        for name in ("harmful", "benign"):
            (tmp_path / f"{name}.txt").write_text(f"same thing\nonly {name}\n")
        options = StressOptions(harmful=str(tmp_path / "harmful.txt"), benign=str(tmp_path / "benign.txt"))
        with pytest.raises(DataError, match="1 prompts are among both the harmful and the benign"):
            tiny_input(options=options)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"suite": "fast"}, "unknown suite 'fast'"),
            ({"scorer": "juge"}, "unknown scorer 'juge'. Did you mean 'judge'"),
            ({"seed": -1}, "seed must be >= 0, got -1"),
            ({"limit": 0}, "limit must be >= 1, got 0"),
        ],
    )
    def test_options(self, changes: dict[str, Any], message: str) -> None:
        from unchecked import unchecked

        with unchecked(), pytest.raises(InvalidValueError, match=message):
            StressOptions(**changes)
