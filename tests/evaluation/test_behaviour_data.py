"""A behaviour measured on the user's own data: read in published formats, divided once and for all."""

import json
from pathlib import Path

import pytest

from steer2edit.errors import DataError, InvalidValueError
from steer2edit.evaluation import behaviour
from steer2edit.steering.presets import safety_prompts


def lines(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def test_parts_are_disjoint_complete_and_the_same_every_time(tmp_path: Path) -> None:
    source = tmp_path / "own.csv"
    source.write_text("goal,target\n" + "\n".join(f"Request {i},Sure" for i in range(10)), encoding="utf-8")
    data = {"harmful": str(source)}
    validation = behaviour("safety", "validation", data=data)
    held_out = behaviour("safety", "held_out", data=data)
    assert (len(validation.prompts["harmful"]), len(held_out.prompts["harmful"])) == (4, 6)  # 40 % of 10
    together = validation.prompts["harmful"] + held_out.prompts["harmful"]
    assert sorted(together) == sorted(f"Request {i}" for i in range(10))
    assert behaviour("safety", "validation", data=data).prompts == validation.prompts
    assert behaviour("safety", "validation", data=data, seed=1).prompts != validation.prompts
    assert validation.prompts["benign"] == safety_prompts("validation")[1]  # what is not given is built in
    assert len(validation.tasks[0]) == 4
    assert behaviour("safety", "validation", data=data, limit=2).prompts["harmful"] == together[:2]


def test_a_split_column_decides(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": "a", "split": "validation"}, {"prompt": "b", "split": "held_out"}, {"prompt": "c", "split": "train"},
    ]  # fmt: skip
    data = {"requests": lines(tmp_path / "own.jsonl", rows), "benign": lines(tmp_path / "benign.jsonl", rows)}
    validation, held_out = (behaviour("conciseness", split, data=data) for split in ("validation", "held_out"))
    assert (validation.prompts, held_out.prompts) == ({"requests": ["a"]}, {"requests": ["b"]})
    assert (validation.drift.items, held_out.drift.items) == (["a"], ["b"])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q?", "positive": "true", "negative": "false"},
        {
            "question": "Q?",
            "best_answer": "true",
            "correct_answers": ["true", "also true"],
            "incorrect_answers": ["false", "worse"],
        },
    ],
)
def test_questions_of_both_formats(row: dict[str, object], tmp_path: Path) -> None:
    data = {"questions": lines(tmp_path / "own.jsonl", [{**row, "split": "held_out"}])}
    found = behaviour("truthfulness", "held_out", data=data)
    assert found.tasks[0].items == [("Q?", "true", "false")]  # type: ignore[attr-defined]
    assert (found.prompts, found.guide) == ({"questions": ["Q?"]}, "truth_margin")


def test_bad_data(tmp_path: Path) -> None:
    one = lines(tmp_path / "one.jsonl", [{"prompt": "only one"}])
    with pytest.raises(DataError, match=r"has no set 'harmfull'.*Did you mean 'harmful'"):
        behaviour("safety", "validation", data={"harmfull": one})
    with pytest.raises(DataError, match="1 rows, too few"):
        behaviour("safety", "validation", data={"harmful": one})
    with pytest.raises(InvalidValueError, match="validation and held_out parts only, got 'train'"):
        behaviour("safety", "train", data={"harmful": one})
    with pytest.raises(DataError, match=r"has no prompt column.*found text"):
        behaviour("safety", "held_out", data={"harmful": lines(tmp_path / "bad.jsonl", [{"text": "x"}] * 5)})
    with pytest.raises(DataError, match=r"missing\.csv"):
        behaviour("safety", "held_out", data={"harmful": str(tmp_path / "missing.csv")})
