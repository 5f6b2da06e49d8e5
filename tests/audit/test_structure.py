"""`identical` and `rounded-copy` are claims about the whole model: its layers, tensors, settings and code."""

import json
import re
import shutil
from pathlib import Path

import pytest
from planted_edits import changed_copy, plant, tiny_base
from safetensors.torch import load_file, save_file
from torch import Tensor

from families import tiny_network
from steer2edit.audit import Audit, audit
from steer2edit.errors import ModelError


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_base(tmp_path / "base")
    return tmp_path / "base"


def settle(directory: Path, **settings: object) -> Path:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return directory


def restacked(base: Path, copy: Path, layers: list[int]) -> Audit:
    """The base against a copy with these of its layers, in this order."""

    def restack(tensors: dict[str, Tensor]) -> None:
        old = dict(tensors)
        tensors.clear()
        tensors |= {name: tensor for name, tensor in old.items() if ".layers." not in name}
        for new, layer in enumerate(layers):
            tensors |= {
                re.sub(r"layers\.\d+", f"layers.{new}", name): tensor.clone()
                for name, tensor in old.items()
                if f".layers.{layer}." in name
            }

    return audit(str(base), settle(changed_copy(base, copy, restack), num_hidden_layers=len(layers)))


def test_a_layer_more_or_less(base: Path, tmp_path: Path) -> None:
    stacked = restacked(base, tmp_path / "stacked", [0, 1, 2, 2])
    assert stacked.classification.label == "other"
    assert "1 layer added (model.layers.3)" in stacked.classification.sentence
    assert stacked.as_json()["layers"]["added"] == ["model.layers.3"]
    assert stacked.as_json()["settings"] == {"num_hidden_layers": (3, 4)}
    shortened = restacked(base, tmp_path / "shortened", [0, 1])
    assert shortened.classification.label == "other"
    assert shortened.classification.sentence.startswith("Not the same model: 1 layer missing (model.layers.2)")
    same = restacked(base, tmp_path / "same", [0, 1, 2])
    assert same.classification.sentence.startswith("Identical: all ")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rms_norm_eps": 0.5}, ["rms_norm_eps"]),
        ({"hidden_act": "gelu"}, ["hidden_act"]),
        ({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}, ["rope_parameters"]),
        ({"quantization_config": {"quant_method": "fp8"}}, ["quantization_config"]),
        ({"unheard_of": 1}, ["unheard_of"]),
        ({"tie_word_embeddings": True}, []),  # it has a head of its own, which counts
        ({"dtype": "float16", "transformers_version": "4.0", "use_cache": False, "_name_or_path": "x"}, []),
        ({"attention_bias": False, "pad_token_id": 0}, []),
    ],
)  # fmt: skip
def test_settings_that_change_what_is_computed(
    settings: dict[str, object], named: list[str], base: Path, tmp_path: Path
) -> None:
    found = audit(str(base), settle(shutil.copytree(base, tmp_path / "other"), **settings))
    assert list(found.structure.settings) == named
    assert found.classification.label == ("other" if named else "identical")
    assert all(name in found.classification.sentence for name in named)
    cast = changed_copy(tmp_path / "other", tmp_path / "cast", lambda t: t.update({n: v.half() for n, v in t.items()}))
    assert audit(str(base), cast).classification.label == ("other" if named else "rounded-copy")


def test_settings_of_an_unknown_architecture(base: Path, tmp_path: Path) -> None:
    settle(base, model_type="unknown")
    same = settle(shutil.copytree(base, tmp_path / "same"), transformers_version="1")
    assert audit(str(base), same).classification.label == "identical"
    other = settle(shutil.copytree(base, tmp_path / "other"), rms_norm_eps=1)
    assert audit(str(base), other).classification.label == "other"


def test_code_that_differs(base: Path, tmp_path: Path) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    (other / "modeling_own.py").write_text("import os")
    found = audit(str(base), other)
    assert found.classification.label == "other"
    assert "1 file of code that differs (modeling_own.py)" in found.classification.sentence


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_may_be_a_tensor_of_its_own(tied: bool, tmp_path: Path) -> None:
    tiny_network("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    assert head not in load_file(tmp_path / "base" / "model.safetensors")
    own = changed_copy(tmp_path / "base", tmp_path / "own", lambda t: t.update({head: t[embedding].clone()}))
    settle(own, tie_word_embeddings=tied)
    for one, other in ((tmp_path / "base", own), (own, tmp_path / "base")):
        assert audit(str(one), other).classification.label == "identical"
    changed = changed_copy(own, tmp_path / "changed", lambda t: t[head].mul_(2))
    assert [change.name for change in audit(str(tmp_path / "base"), changed).changes] == [head]
    without = settle(shutil.copytree(tmp_path / "base", tmp_path / "without"), tie_word_embeddings=False)
    assert "tie_word_embeddings" in audit(str(tmp_path / "base"), without).structure.settings


def test_a_given_edit_is_not_all_where_something_else_differs(tmp_path: Path) -> None:
    planted = plant(tmp_path)
    match = audit(str(planted.base), planted.edited, planted.edit).match
    assert match is not None
    assert match.sentence.endswith("Nothing else changed.")
    settle(planted.edited, rms_norm_eps=0.5)
    match = audit(str(planted.base), planted.edited, planted.edit).match
    assert match is not None
    assert match.matches
    assert match.sentence.endswith("Besides: 1 setting of config.json that differs (rms_norm_eps).")


def test_an_edited_projection_that_is_not_there(tmp_path: Path) -> None:
    planted = plant(tmp_path)
    name = "model.layers.1.self_attn.o_proj.weight"
    lacking = changed_copy(planted.edited, tmp_path / "lacking", lambda tensors: tensors.pop(name))
    match = audit(str(planted.base), lacking, planted.edit).match
    assert match is not None
    assert not match.matches
    assert [str(site.site) for site in match.sites if not site.matches] == ["L1.attn"]
    assert "1 site of it that could not be compared (L1.attn)" in match.besides


def test_an_edit_of_an_unknown_architecture_is_not_denied(tmp_path: Path) -> None:
    planted = plant(tmp_path)
    for directory in (planted.base, planted.edited):
        settle(directory, model_type="unknown")
    with pytest.raises(ModelError, match="cannot be compared with an edit"):
        audit(str(planted.base), planted.edited, planted.edit)


def test_a_config_written_anew_is_no_difference(base: Path, tmp_path: Path) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    (other / "config.json").write_text(json.dumps(json.loads((base / "config.json").read_text()), indent=7))
    save_file(load_file(base / "model.safetensors"), other / "model.safetensors", {"format": "pt", "by": "x"})
    found = audit(str(base), other).classification
    assert found.label == "identical"
    assert found.sentence.endswith("bit for bit.")
