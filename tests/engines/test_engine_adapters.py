"""Edits as adapters on disk: what they hold, when they are gone, and how requests are grouped around them."""

import copy
from itertools import count
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from engine_contract import random_edits
from steer2edit.core import (
    ClassMeans,
    Combined,
    Editing,
    Site,
    SiteEdit,
    SiteMeans,
    Steering,
    SteeringVectors,
    WeightEdit,
)
from steer2edit.editing import merged
from steer2edit.engines.requests import identity
from steer2edit.engines.vllm_package import adapters, as_edit, edit_groups, llm_settings, write_adapter
from steer2edit.errors import InvalidValueError, MismatchError
from steer2edit.models import LanguageModel
from tiny_chat import tiny_chat_model

IDS = torch.arange(3, 27).view(2, 12)


def logits(network: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return network(input_ids=IDS).logits


def zero_edit(model: LanguageModel) -> WeightEdit:
    d, m = model.sites[Site(0, "mlp")].shape
    u = torch.nn.functional.one_hot(torch.tensor(0), d).float()
    return WeightEdit({Site(0, "mlp"): SiteEdit(u, torch.zeros(m), torch.zeros(m), torch.zeros(m))})


def test_an_adapter_is_the_edit_at_its_strength(tmp_path: Path) -> None:
    model = tiny_chat_model()
    base = logits(model.network)
    for index, editing in enumerate(random_edits(model, [1.0, -0.5])):
        directory = tmp_path / str(index)
        write_adapter(model, editing, directory)
        loaded = PeftModel.from_pretrained(copy.deepcopy(model.network), str(directory))
        with merged(model, editing.edit, editing.strength):
            wanted = logits(model.network)
        assert (wanted - base).abs().max() > 0.01
        torch.testing.assert_close(logits(loaded), wanted, atol=1e-5, rtol=1e-5)


class TestAdapters:
    def test_each_is_there_once_and_gone_afterwards(self) -> None:
        model, dropped, numbers = tiny_chat_model(), list[int](), count(1)
        a, b = random_edits(model, [1.0, 0.9])
        with adapters(model, [a, None, b, a], numbers, dropped.append) as held:
            assert [number for number, _ in held.values()] == [1, 2]
            folder = held[identity(a)][1]
            assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
            assert not dropped
        assert dropped == [1, 2]
        assert not folder.parent.exists()
        with adapters(model, [b], numbers, dropped.append) as held:  # once more: nothing cached is taken for it
            assert [number for number, _ in held.values()] == [3]

    def test_dropped_also_after_an_exception(self) -> None:
        model, dropped = tiny_chat_model(), list[int]()
        with pytest.raises(RuntimeError), adapters(model, random_edits(model, [1.0]), count(1), dropped.append):
            raise RuntimeError
        assert dropped == [1]

    def test_strength_is_part_of_an_edit(self) -> None:
        model = tiny_chat_model()
        (one,) = random_edits(model, [1.0])
        with adapters(model, [one, Editing(one.edit, 0.5), Editing(one.edit)], count(1), int) as held:
            assert sorted(key[1] for key in held) == [0.5, 1.0]

    def test_an_edit_of_another_model_is_refused(self, tmp_path: Path) -> None:
        (other,) = random_edits(tiny_chat_model(hidden_size=48), [1.0])
        with pytest.raises(MismatchError, match="these edits are for a weight of shape"):
            write_adapter(tiny_chat_model(), other, tmp_path / "adapter")

    def test_there_must_be_room_for_one(self) -> None:
        with pytest.raises(InvalidValueError, match="max_edits must be >= 1, got 0"):
            llm_settings(tiny_chat_model(), 0, {})


class TestGroups:
    def test_at_most_so_many_edits_and_the_base_in_the_first(self) -> None:
        a, b, c = random_edits(tiny_chat_model(), [1.0, 0.9, 0.8])
        assert edit_groups([a, None, b, c, a, Editing(c.edit, 0.8), None], 2) == [[0, 1, 2, 4, 6], [3, 5]]
        assert edit_groups([None, None], 2) == [[0, 1]]
        assert edit_groups([a, b], 1) == [[0], [1]]
        assert edit_groups([], 2) == []


class TestAsEdit:
    def test_steering_is_refused(self) -> None:
        means = SiteMeans(ClassMeans(torch.ones(4), torch.zeros(4)), ClassMeans(torch.ones(4), torch.zeros(4)))
        vectors = SteeringVectors({Site(0, "mlp"): means})
        with pytest.raises(InvalidValueError, match=r"strength 0\.2.*Use the transformers engine"):
            as_edit(Steering(vectors, 0.2))
        with pytest.raises(InvalidValueError, match="several interventions at once cannot run"):
            as_edit(Combined((Steering(vectors, 0.2),)))

    def test_what_changes_nothing_is_the_base(self) -> None:
        model = tiny_chat_model()
        (editing,) = random_edits(model, [1.0])
        assert as_edit(None) is None
        assert as_edit(Editing(editing.edit, 0.0)) is None
        assert as_edit(Editing(zero_edit(model))) is None
        assert as_edit(editing) is editing
