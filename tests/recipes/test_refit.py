"""An edit made anew: on the same weights it is the same edit, on others the one that its recipe gives there."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from steer2edit.artifacts import load_edit, save_edit
from steer2edit.cli import app
from steer2edit.core import WeightEdit
from steer2edit.engines import TransformersEngine
from steer2edit.errors import DataError, InvalidValueError, MismatchError
from steer2edit.estimates import Condition
from steer2edit.evaluation import Arm, behaviour
from steer2edit.evaluation.task import Task
from steer2edit.models import LanguageModel
from steer2edit.recipes.making import NOW, _at_best_drift, make_edit, make_vectors, recipe_of, refit
from steer2edit.settings import Accepting, ConvertOptions, ExtractOptions, RefitOptions
from tiny_chat import tiny_chat_model

MADE = ExtractOptions("conciseness", limit=8, seed=3)
BUDGET = ConvertOptions(rho_attn=0.05, rho_mlp=0.05, alpha=0.4)


def tiny() -> LanguageModel:
    return tiny_chat_model(num_hidden_layers=2, max_position_embeddings=1024)


def made(model: LanguageModel) -> WeightEdit:
    return make_edit(model, make_vectors(model, MADE), BUDGET, Accepting(force=True))


def same(one: WeightEdit, other: WeightEdit) -> bool:
    return one.sites.keys() == other.sites.keys() and all(
        torch.equal(one.sites[site].row, other.sites[site].row)
        and torch.equal(one.sites[site].output_direction, other.sites[site].output_direction)
        for site in one.sites
    )


def test_on_the_same_weights_it_is_the_same_edit_and_on_tuned_ones_what_the_recipe_gives_there(tmp_path: Path) -> None:
    model = tiny()
    save_edit(model, made(model), tmp_path / "edit")
    old = load_edit(tmp_path / "edit")
    found, conditions, _ = refit(model, old, RefitOptions(force=True))
    assert same(found, made(model))
    assert [one.label for one in conditions] == [NOW, "old edit on top", "refitted edit"]
    old_on_top, new = (one.values for one in conditions[1:])
    assert old_on_top == new

    tuned = tiny()
    with torch.no_grad():
        for projection in tuned.sites.values():
            projection.module.weight.mul_(torch.linspace(0.5, 1.5, projection.module.weight.shape[1]))
    again, _, _ = refit(tuned, old, RefitOptions(force=True))
    assert same(again, made(tuned))
    assert not same(again, found)
    assert again.metadata["refit_of"]["vectors"] == old.metadata["vectors"]["sha256"]


@pytest.mark.parametrize(
    ("shown", "direction", "share"),
    [((0.9, 0.5, 0.9), 1, 1.0), ((0.1, 0.9, 0.5), 1, 0.3), ((0.1, None, 0.5), 1, 0.1), ((9.0, 4.0, 6.0), -1, 0.3)],
)
def test_a_refitted_edit_drifts_no_further_than_helps(
    monkeypatch: pytest.MonkeyPatch, shown: tuple[float | None, ...], direction: int, share: float
) -> None:
    model = tiny()
    part = replace(behaviour("safety", "validation", limit=4), direction=direction)
    edit = make_edit(model, make_vectors(model, MADE), BUDGET, Accepting(force=True))
    asked = []

    def measured(engine: TransformersEngine, tasks: list[Task], arms: list[Arm]) -> list[Condition]:
        asked.extend(arm.parameters["strength"] for arm in arms)
        assert [part.attribute] == [name for task in tasks for name in task.metric_names]
        return [Condition(arm.label, {}, values={part.attribute: [v]}) for arm, v in zip(arms, shown, strict=True)]

    monkeypatch.setattr("steer2edit.recipes.making.evaluate", measured)
    found = _at_best_drift(TransformersEngine(model), edit, 0.01, part)
    assert asked == [pytest.approx(one**0.5) for one in (1.0, 0.3, 0.1)]
    assert found.metadata["drift"]["kl"] == pytest.approx(0.01 * share, rel=0.06)
    assert found.metadata["drift"]["asked"] == 0.01


def test_a_robust_edit_is_made_of_copies_and_its_recipe_says_so() -> None:
    model, plain = tiny(), replace(MADE, effects=True)
    before = {name: parameter.clone() for name, parameter in model.network.named_parameters()}
    robust = replace(plain, robust="tuned")
    vectors = make_vectors(model, robust)
    assert vectors.metadata["effects"]["copies"] == ["tuned"]
    effects = [
        torch.cat([means.effects.attribute for means in found.sites.values() if means.effects])
        for found in (vectors, make_vectors(model, plain))
    ]
    assert torch.nn.functional.cosine_similarity(*effects, dim=0) < 0.9999
    assert all(torch.equal(before[name], parameter) for name, parameter in model.network.named_parameters())
    edit = make_edit(model, vectors, ConvertOptions(kl=0.01), Accepting(force=True))
    metadata = json.loads(json.dumps(edit.metadata))
    assert recipe_of(WeightEdit(edit.sites, metadata)) == replace(robust, decided_by="end")
    with pytest.raises(InvalidValueError, match="unknown robust 'int4'"):
        replace(plain, robust="int4")  # type: ignore[arg-type]


def test_the_recipe_is_what_was_asked_for() -> None:
    edit = made(tiny())
    assert recipe_of(edit) == MADE
    assert recipe_of(edit, "safety").contrast == "safety"
    unknown = WeightEdit(edit.sites, {**edit.metadata, "vectors": {"contrast": {"name": "pairs in memory"}}})
    with pytest.raises(DataError, match=r"does not name one contrast set .* --contrast BEHAVIOUR"):
        recipe_of(unknown)
    newer = WeightEdit(edit.sites, {**edit.metadata, "vectors": {"recipe": {"contrast": "safety", "depth": 3}}})
    with pytest.raises(DataError, match=r"not say in a known form .*'depth'"):
        recipe_of(newer)
    odd = WeightEdit(edit.sites, {**edit.metadata, "hyperparameters": "strong"})
    with pytest.raises(DataError, match="not say in a known form"):
        refit(tiny(), odd)
    ablated = WeightEdit(edit.sites, {"method": "ablation", "model": edit.metadata["model"]})
    with pytest.raises(DataError, match=r"not say in a known form .*'hyperparameters'.* Make it anew"):
        refit(tiny(), ablated, RefitOptions(contrast="safety", limit=4))
    with pytest.raises(MismatchError):
        refit(tiny_chat_model(num_hidden_layers=1, max_position_embeddings=1024), edit)


def test_an_edit_of_an_earlier_version_loads_and_is_made_anew_unless_a_setting_is_gone(tmp_path: Path) -> None:
    """Every earlier edit names settings that are no more: off in most, and then nothing is lost."""
    model = tiny()
    edit, gone = made(model), {"max_shift": None, "spare": None}
    for name, beyond in (("off", gone), ("on", {**gone, "max_shift": 0.4})):
        earlier = {**edit.metadata, "hyperparameters": {**edit.metadata["hyperparameters"], **beyond}}
        save_edit(model, WeightEdit(edit.sites, earlier), tmp_path / name)
        assert same(load_edit(tmp_path / name), edit)
        shown = CliRunner().invoke(app, ["inspect", str(tmp_path / name)], catch_exceptions=False)
        assert shown.exit_code == 0, shown.output
    assert same(refit(model, load_edit(tmp_path / "off"), RefitOptions(force=True))[0], edit)
    with pytest.raises(InvalidValueError, match=r"max_shift = 0\.4 is not of this one"):
        refit(model, load_edit(tmp_path / "on"), RefitOptions(force=True))


def test_one_command_writes_the_new_edit_beside_the_old_one(tmp_path: Path) -> None:
    model = tiny()
    model.network.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    save_edit(model, made(model), tmp_path / "edit")
    arguments = ["refit", str(tmp_path / "model"), str(tmp_path / "edit"), "--limit", "8", "--force", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["out"] == str(tmp_path / "edit-refit")
    assert told["conditions"][0]["label"] == NOW
    assert same(load_edit(tmp_path / "edit-refit"), load_edit(tmp_path / "edit"))
