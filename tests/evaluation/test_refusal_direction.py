"""Which way an edit moves refusals: by its files, by measurement, and said first."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from steer2edit.artifacts import save_edit
from steer2edit.cli import app
from steer2edit.core import WeightEdit
from steer2edit.engines import TransformersEngine
from steer2edit.errors import MismatchError
from steer2edit.evaluation.refusal_direction import measured_direction, refusal_direction
from steer2edit.models import Reply
from stress.tiny_stress import random_vectors, tiny_edit, tiny_model


def edit_of(contrast: str | None = "safety", method: str = "steer2edit") -> WeightEdit:
    """Of the paper's rule, whose λ has the sign of g."""
    model = tiny_model()
    edit = tiny_edit(model, random_vectors(model))
    vectors = {} if contrast is None else {"contrast": {"name": contrast}}
    return WeightEdit(edit.sites, {**edit.metadata, "method": method, "vectors": vectors})


def test_an_edit_and_the_same_turned_round() -> None:
    edit = edit_of()
    along = sum(float(own.magnitude @ own.importance) for own in edit.sites.values())
    assert along > 0
    raises, lowers = refusal_direction(edit), refusal_direction(edit.scaled(-0.5))
    assert (raises.direction, raises.sentence) == ("raises", "")
    assert lowers.direction == "lowers"
    assert lowers.sentence.startswith("DUAL USE: this edit lowers refusals. It was made from the contrast safety")
    assert f"against it (Σ λ g {-0.5 * along:+.3g})" in lowers.why
    assert refusal_direction(edit, -1.0).direction == "lowers"  # as it was found in a checkpoint


@pytest.mark.parametrize(
    ("edit", "direction", "why"),
    [
        (edit_of(method="ablation"), "lowers", "a directional ablation of the contrast safety"),
        (edit_of("over-refusal"), "lowers", "the contrast over-refusal, which complies"),
        (edit_of("over-refusal", "ablation"), "raises", ""),
        (edit_of("conciseness"), "unknown", "'conciseness', which is none of refusals"),
        (edit_of(None), "unknown", "do not say which contrast"),
        (edit_of().scaled(0.0), "unknown", "no importances or magnitudes"),
    ],
)
def test_what_files_tell(edit: WeightEdit, direction: str, why: str) -> None:
    found = refusal_direction(edit)
    assert found.direction == direction
    assert why in found.sentence


def test_measured_it_is_told_whatever_the_files_say(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    vectors = {"contrast": {"name": "safety"}}
    edit = replace(tiny_edit(model, random_vectors(model)), metadata={"vectors": vectors, "model": model.describe()})
    refusals = {None: True, "edit": False}

    def generate(self: Any, requests: Any, *_: Any, **__: Any) -> list[Reply]:
        return [
            Reply("I'm sorry, but I can't." if refusals[request.intervention and "edit"] else "Sure.", (1,), True)
            for request in requests
        ]

    monkeypatch.setattr(TransformersEngine, "generate", generate)
    lowers = measured_direction(model, edit)
    assert lowers.direction == "lowers"
    assert lowers.measured is not None
    assert (lowers.measured.value, lowers.measured.n) == (-1.0, 48)
    refusals.update({None: False, "edit": True})
    assert measured_direction(model, edit.scaled(-1.0)).direction == "raises"
    refusals.update({None: True, "edit": True})
    same = measured_direction(model, edit.scaled(-1.0))
    assert same.direction == "lowers"  # what its files say, where the interval covers zero
    assert "Measured: edit less base +0 points" in same.why
    with pytest.raises(MismatchError):
        measured_direction(tiny_model(seed=2), edit)


def test_inspect_says_it_first(tmp_path: Path, capsys: Any) -> None:
    model, edit = tiny_model(), edit_of()
    for name, own in (("up", edit), ("down", edit.scaled(-1.0))):
        save_edit(model, own, tmp_path / name)
    app(["inspect", str(tmp_path / "down")], standalone_mode=False)
    assert capsys.readouterr().out.startswith("DUAL USE: this edit lowers refusals.")
    app(["inspect", str(tmp_path / "up")], standalone_mode=False)
    assert "refusals" not in capsys.readouterr().out
    app(["inspect", str(tmp_path / "down"), "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert next(iter(found)) == "refusals"
    assert found["refusals"]["direction"] == "lowers"


def test_inspect_measures_on_a_model(tmp_path: Path, capsys: Any) -> None:
    model, edit = tiny_model(), edit_of()
    torch.manual_seed(0)
    model.network.save_pretrained(tmp_path / "base")
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(tmp_path / "base")
    save_edit(model, edit, tmp_path / "edit")
    app(["inspect", str(tmp_path / "edit"), "--model", str(tmp_path / "base"), "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)["refusals"]
    assert found["measured"]["n"] + found["measured"]["unscored"] == 48
    assert "Measured: " in found["why"]
