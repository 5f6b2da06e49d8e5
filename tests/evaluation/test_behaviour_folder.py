"""A behaviour of one's own: a folder or a contrast file, in every command, and what is wrong with it said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_server import Answer, judge_server
from scripted_model import ScriptedModel

from steer2edit.engines import TransformersEngine
from steer2edit.errors import DataError, InvalidValueError
from steer2edit.evaluation import BASE_ARM, behaviour, build_tasks, evaluate
from steer2edit.evaluation.likelihood_tasks import PreferenceTask
from steer2edit.evaluation.reply_tasks import VerdictTask
from steer2edit.evaluation.scorers import LocalJudge, Phrases
from steer2edit.models import Reply
from steer2edit.steering.behaviour_folder import find_behaviour
from steer2edit.steering.contrast import load_contrast
from tiny_chat import END, tiny_chat_model

SCORED = '[sets.mine]\nscorer = "phrases"\nany = ["arr", "ahoy there"]\n'
ITEMS = [{"prompt": f"q{i}", "split": split} for i, split in enumerate(["validation", "held_out", "held_out"])]
PAIRS = [{"prompt": f"p{i}", "positive": f"Arr {i}.", "negative": f"Yes {i}."} for i in range(10)]
Make = Callable[..., str]


def rows(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, content)), encoding="utf-8")
    return path


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(toml: str = SCORED, **files: list[dict[str, Any]]) -> str:
        folder = tmp_path / "pirate"
        folder.mkdir(exist_ok=True)
        (folder / "behaviour.toml").write_text(toml, encoding="utf-8")
        for name, content in {"mine": ITEMS, "contrast": PAIRS, **files}.items():
            rows(folder / f"{name}.jsonl", content)
        return str(folder)

    return made


class TestFolder:
    def test_says_what_is_measured(self, make: Make) -> None:
        found = behaviour(make('direction = "lower"\nreach = 0.2\n' + SCORED), "held_out")
        assert (found.name, found.attribute, found.direction, found.reach) == ("pirate", "mine_shown", -1, 0.2)
        assert found.prompts == {"mine": ["q1", "q2"]}
        assert found.tasks[0] == VerdictTask(
            "mine",
            ["q1", "q2"],
            found.tasks[0].sampling,
            Phrases(("arr", "ahoy there")),  # type: ignore[attr-defined]
        )
        assert len(found.drift) == 96  # benign requests that come with the package

    def test_sets_without_a_file_are_the_contrasts_rows_that_no_vector_is_made_from(self, make: Make) -> None:
        folder = make('[sets.wording]\nscorer = "preference"\nmetrics = "arr"\n')
        found = behaviour(folder, "held_out")
        train = {prompt for prompt, _ in load_contrast(folder, tiny_chat_model()).train.positive}
        assert (found.attribute, found.guide) == ("arr_preferred", "arr_margin")
        assert len(train) == 6
        assert len(found.prompts["wording"]) == 2
        assert not train & {*found.prompts["wording"], *behaviour(folder, "validation").prompts["wording"]}
        for prompt, positive, negative in found.tasks[0].items:
            assert (positive, negative) == (f"Arr {prompt[1:]}.", f"Yes {prompt[1:]}.")

    def test_costs_likeness_and_sets_of_the_package(self, make: Make) -> None:
        more = '[sets.other]\nlike = "mine"\nitems = "safety:benign"\nusual = { held_out = 5 }\n'
        found = behaviour(make('costs = { other_shown = "rise" }\n' + SCORED + more), "held_out")
        assert found.costs == {"other_shown": "rise"}
        assert [task.name for task in found.tasks] == ["mine", "other", ""]
        assert found.tasks[0].scorer == found.tasks[1].scorer  # type: ignore[attr-defined]
        assert found.prompts["other"] == behaviour("safety", "held_out").prompts["benign"][:5]

    def test_its_own_benign_requests(self, make: Make) -> None:
        found = behaviour(make(benign=[{"prompt": "b", "split": "held_out"}]), "held_out")
        assert list(found.drift.items) == ["b"]

    def test_is_a_task_of_evaluate(self, make: Make) -> None:
        tasks = build_tasks([make(), "refusal"])
        assert [name for task in tasks for name in task.metric_names] == [
            "mine_shown", "nll_increase", "kl", "harmful_refused",
        ]  # fmt: skip

    def test_what_is_asked_and_how_is_in_its_digest(self, make: Make) -> None:
        digests = [behaviour(make(SCORED.replace("arr", word)), "held_out").digest() for word in ("arr", "arr", "yarr")]
        assert digests[0] == digests[1] != digests[2]


class TestContrastFile:
    def test_is_a_behaviour(self, tmp_path: Path) -> None:
        found = behaviour(str(rows(tmp_path / "pirate.jsonl", PAIRS)), "validation")
        assert (found.name, found.attribute, found.guide, found.direction) == (
            "pirate.jsonl", "pairs_preferred", "pairs_margin", 1,
        )  # fmt: skip
        assert isinstance(found.tasks[0], PreferenceTask)
        assert len(found.tasks[0]) == 2

    def test_needs_both_sides(self, tmp_path: Path) -> None:
        path = rows(tmp_path / "a.jsonl", [{"prompt": f"p{i}", "response": "x", "label": "positive"} for i in range(9)])
        with pytest.raises(DataError, match=r"the contrast of a\.jsonl, 'p\d' has no column 'negative'"):
            behaviour(str(path), "validation")

    def test_needs_held_out_items(self, tmp_path: Path) -> None:
        path = rows(tmp_path / "a.jsonl", [{**row, "split": "train"} for row in PAIRS])
        with pytest.raises(DataError, match=r"'a\.jsonl' has no held-out items: give rows of the contrast"):
            behaviour(str(path), "held_out")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("sets = 3", r"sets must be tables"),
        ("colour = 1\n" + SCORED, r"behaviour\.toml: colour: there is no such key\. Known: attribute, contrast"),
        ('name = "x"\n' + SCORED, r"no key 'name': a behaviour is called after its folder"),
        ("attribute = \n", r"behaviour\.toml is not TOML"),
        ('direction = "up"\n' + SCORED, r"direction: Input should be 'higher' or 'lower'"),
        ("", "has no sets, which say what is measured"),
        ('attribute = "mine_show"\n' + SCORED, r"no set reports 'mine_show'\. Did you mean 'mine_shown'\?"),
        ('[sets.mine]\nscorer = "phrase"', r"no scorer 'phrase'\. Did you mean 'phrases'\? Known: choice, judge"),
        ("[sets.mine]\nany = []", r"sets\.mine\.scorer: Field required"),
        ('[sets.mine]\nlike = "yours"', r"sets\.mine\.like: there is no set 'yours'"),
        ('[sets.mine]\nscorer = "phrases"', r"sets\.mine: phrases need texts in `any`, `none` or both"),
        ('[sets.mine]\nscorer = "length"\nany = ["a"]', r"the scorer 'length' has no key 'any'"),
        ('[sets.mine]\nscorer = "phrases"\nal = ["a"]', r"sets\.mine\.al: Unexpected"),
        ('[sets.mine]\nscorer = "judge"\nurl = "http://x/v1"\nmodel = "m"', r"sets\.mine\.question: "),
        ('[sets.mine]\nscorer = "local_judge"\nmodel = "m"\nquestion = "?"', r"sets\.mine: .*must contain \{reply\}"),
        ('[sets.mine]\nscorer = "python"\nfunction = "os:remove"', r"in the behaviour's folder, got 'os:remove'"),
        ('[sets.mine]\nscorer = "python"\nfunction = "rate"', r"named as module:function"),
        ('[sets.mine]\nscorer = "length"\nitems = "x"', r"the set 'mine' has no file 'x' in its folder"),
        ('[sets.mine]\nscorer = "length"\nitems = "../out"', r"names '\.\./out', which is not in its folder"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(toml: str, message: str, make: Make, tmp_path: Path) -> None:
    rows(tmp_path / "out.jsonl", ITEMS)
    with pytest.raises(DataError, match=message):
        behaviour(make(toml), "held_out")


def test_what_is_not_there_is_said(make: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no behaviour\.toml in"):
        find_behaviour(tmp_path)
    with pytest.raises(DataError, match=r"no rows of the split 'held_out' \(found validation: 1\)\. Mark"):
        behaviour(make(mine=ITEMS[:1]), "held_out")
    (folder := tmp_path / "safety").mkdir()
    with pytest.raises(DataError, match=r"'safety'\. Rename the folder"):
        find_behaviour(folder)
    (Path(make()) / "contrast.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no contrast: put contrast\.jsonl into"):
        load_contrast(str(tmp_path / "pirate"), tiny_chat_model())


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Arr!", True), ("Ahoy  there", False), ("AHOY THERE.", True), ("carry", False), ("", None),
        ("Arr, can\u2019t", False),
    ],
)  # fmt: skip
def test_phrases(answer: str, verdict: bool | None) -> None:
    scorer = Phrases(("arr", "ahoy there"), ("can't",))
    assert scorer.score(["?"], [Reply(answer, (), True)]) == [verdict]


def test_choices_are_put_in_both_orders() -> None:
    """A model that likes the letter A by w whatever stands there prefers nothing: its margins cancel."""
    task = PreferenceTask("mine", [("q", "yes", "no")], "letter")
    prompts = [prompt for prompt, _ in task.answers(task.items[0])]
    assert ["A. yes\nB. no" in prompt for prompt in prompts] == [True, True, False, False]  # type: ignore[operator]
    assert [answer for _, answer in task.answers(task.items[0])] == ["A", "B", "B", "A"]
    scripted = ScriptedModel({".": ("A", 2.0), "A": (END, 2.0), "B": (END, 2.0)}, lure=("B", 1.0))
    (base,) = task.measure(TransformersEngine(scripted.model), [None])
    assert base.values["mine_margin"][0] == pytest.approx(0, abs=1e-5)
    assert base.values["mine_preferred"] == [False]


PYTHON = '[sets.mine]\nscorer = "python"\nfunction = "judging:rate"\n'


def function(folder: str, body: str) -> None:
    (Path(folder) / "judging.py").write_text(f"def rate(prompt, reply):\n    {body}\n", encoding="utf-8")


class TestPythonFunction:
    def test_what_it_cannot_score_is_counted_with_the_reason(self, make: Make) -> None:
        function(folder := make("", mine=ITEMS), "return {'a': True, 'b': False, 'c': 0.5}[reply]")
        found = behaviour(make(PYTHON), "held_out")
        scorer = found.tasks[0].scorer  # type: ignore[attr-defined]
        assert Path(folder, "judging.py").is_file()
        replies = [Reply(text, (), True) for text in "abcd"]
        assert scorer.score(["?"] * 4, replies) == [True, False, None, None]
        assert found.unscored == {
            "mine": {"it returned 0.5, which is neither True, False nor None": 1, "KeyError: 'd'": 1}
        }  # fmt: skip

    def test_one_that_always_fails_is_an_error(self, make: Make) -> None:
        function(make(PYTHON), "return 1 / 0")
        found = behaviour(make(PYTHON), "held_out", limit=1, max_new_tokens=2)
        with pytest.raises(DataError, match=r"'judging:rate' fails on every reply: ZeroDivisionError: .* must return"):
            evaluate(TransformersEngine(tiny_chat_model()), found.tasks, [BASE_ARM])

    def test_its_source_is_in_the_digest(self, make: Make) -> None:
        digests = []
        for body in ("return True", "return False"):
            function(make(PYTHON), body)
            digests.append(behaviour(make(PYTHON), "held_out").digest())
        assert digests[0] != digests[1]

    def test_a_module_that_fails(self, make: Make) -> None:
        function(make(PYTHON), "return True\n1 / 0")
        with pytest.raises(DataError, match=r"judging\.py fails: ZeroDivisionError"):
            behaviour(make(PYTHON), "held_out")
        function(make(PYTHON.replace("rate", "rat")), "return True")
        with pytest.raises(DataError, match=r"judging\.py has no function 'rat'"):
            behaviour(make(PYTHON.replace("rate", "rat")), "held_out")


def test_judge(make: Make) -> None:
    with judge_server(lambda question, _: Answer("yes" if "q1" in question else "no")) as served:
        toml = f'[sets.mine]\nscorer = "judge"\nurl = "{served.url}"\nmodel = "m"\nquestion = "{{prompt}} {{reply}}?"\n'
        scorer = behaviour(make(toml), "held_out").tasks[0].scorer  # type: ignore[attr-defined]
        assert scorer.score(["q1", "q2"], [Reply("r", (), True)] * 2) == [True, False]


def test_local_judge_says_what_its_next_token_is(tmp_path: Path) -> None:
    """The judge answers y behind a `!` and n behind a `?`: what is asked ends in the reply."""
    judge = ScriptedModel({"!": ("y", 3.0), "?": ("n", 3.0)}, lure=("x", 1.0))
    judge.model.network.save_pretrained(tmp_path / "judge")
    judge.tokenizer.save_pretrained(tmp_path / "judge")
    scorer = LocalJudge("judge", "{prompt}{reply}", tmp_path)
    replies = [Reply(text, (), True) for text in ("a!", "a?", " ")]
    assert scorer.score(["", "", ""], replies) == [True, False, None]


def test_local_judge_must_be_shown_the_reply() -> None:
    with pytest.raises(InvalidValueError, match=r"must contain \{reply\}"):
        LocalJudge("m", "{prompt}")
