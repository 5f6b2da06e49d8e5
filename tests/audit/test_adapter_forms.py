"""Adapters as PEFT and trainers write them: what the audit says is what PEFT's merged model has, or is named."""

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from planted_edits import tiny_base
from safetensors.torch import load_file, save_file
from torch import Tensor

from families import tiny_network
from steer2edit.audit import Audit, audit
from steer2edit.audit.adapter import UNDERSTOOD, WITHOUT_EFFECT
from steer2edit.errors import ArtifactError, MismatchError, ModelError

TARGETS = ["o_proj", "down_proj"]
FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def trained(
    directory: Path, family: str = "llama", changes: dict[str, object] | None = None, **settings: object
) -> dict:
    """An adapter in `adapter`, its base in `base`; ‖ΔW‖ / ‖W‖ by parameter, as PEFT merges it."""
    network = tiny_network(family, **(changes or {}))
    network.save_pretrained(directory / "base")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(network, LoraConfig(**{"r": 2, "target_modules": TARGETS, **settings}))
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(directory / "adapter")
        after = model.merge_and_unload().state_dict()
    changed = {n: (old, after[n]) for n, old in before.items() if n in after and not torch.equal(old, after[n])}
    return {name: float((new - old).norm() / old.norm()) for name, (old, new) in changed.items()}


def audited(directory: Path) -> Audit:
    return audit(str(directory / "base"), directory / "adapter")


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = directory / "adapter" / FILE
    save_file(change(load_file(file)), file, {"format": "pt"})


def reset(directory: Path, **settings: object) -> None:
    file = directory / "adapter" / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def assert_right(found: Audit, right: dict[str, float]) -> None:
    assert {change.name: change.relative_size for change in found.changes} == pytest.approx(right, rel=1e-4)
    assert found.structure.unread == {}
    assert found.classification.label in ("low-rank", "full-rank")


@pytest.mark.parametrize(
    ("family", "settings", "count"),
    [
        ("llama", {"modules_to_save": ["lm_head", "norm"]}, 14),
        ("llama", {"target_modules": ["embed_tokens", "q_proj"], "lora_alpha": 5}, 4),
        ("llama", {"use_rslora": True, "rank_pattern": {"o_proj": 4}, "alpha_pattern": {r"1\.mlp\.down_proj": 3}}, 6),
        ("llama", {"target_parameters": ["down_proj.weight"], "target_modules": []}, 3),
        ("starcoder2", {"target_modules": ["o_proj", "c_proj"], "bias": "lora_only"}, 12),
        ("starcoder2", {"target_modules": ["o_proj"], "bias": "all"}, None),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}, 9),
        ("gpt_oss", {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]}, None),
    ],
)  # fmt: skip
def test_everything_that_an_adapter_changes(family: str, settings: dict, count: int | None, tmp_path: Path) -> None:
    right = trained(tmp_path, family, **settings)
    assert count in (None, len(right))
    assert_right(audited(tmp_path), right)


def test_the_config_need_not_say_how_a_weight_is_stored(tmp_path: Path) -> None:
    """PEFT goes by the module; c_attn.c_proj is square, so that its shape does not tell."""
    right = trained(tmp_path, "gpt2", target_modules=["attn.c_proj"], fan_in_fan_out=True)
    reset(tmp_path, fan_in_fan_out=False)
    assert_right(audited(tmp_path), right)


def test_names_with_the_adapter_in_them_and_pickled_files(tmp_path: Path) -> None:
    right = trained(tmp_path)
    rewrite(tmp_path, lambda old: {name.replace(".weight", ".default.weight"): t for name, t in old.items()})
    assert_right(audited(tmp_path), right)
    file = tmp_path / "adapter" / FILE
    torch.save(load_file(file), file.with_suffix(".bin"))
    tensors = load_file(file)
    file.unlink()
    assert_right(audited(tmp_path), right)
    torch.save({"w": Path("x")}, file.with_suffix(".bin"))
    with pytest.raises(ArtifactError, match="is refused"):
        audited(tmp_path)
    file.with_suffix(".bin").unlink()
    with pytest.raises(ArtifactError, match="has neither"):
        audited(tmp_path)
    name = next(iter(tensors))
    save_file({**tensors, name.replace(".default", ""): tensors[name].clone()}, file, {"format": "pt"})
    with pytest.raises(ArtifactError, match="twice"):
        audited(tmp_path)


@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.down_proj.lora_{}.weight", "base_model.model.tower.proj.lora_{}.weight"]
)
def test_an_adapter_that_is_nowhere_is_not_identical(name: str, tmp_path: Path) -> None:
    trained(tmp_path)
    rewrite(tmp_path, lambda old: {name.format(side): torch.ones(2, 2) for side in "AB"})
    found = audited(tmp_path)
    assert found.classification.label == "partly-read"
    assert found.classification.sentence.startswith("Read in part: 2 tensors of the adapter not looked at")
    assert found.as_json()["tensors"]["unread"].keys() == {name.format(side) for side in "AB"}


def test_what_peft_would_not_load_is_not_claimed(tmp_path: Path) -> None:
    trained(tmp_path)
    reset(tmp_path, target_modules=["down_proj"], layers_to_transform=[0, 2])
    found = audited(tmp_path)
    assert {change.name for change in found.changes} == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 2)}
    assert len(found.structure.unread) == 2 * 4
    assert found.classification.label == "partly-read"


def test_an_output_head_that_is_tied_gets_a_change_of_its_own(tmp_path: Path) -> None:
    right = trained(tmp_path, changes={"tie_word_embeddings": True}, modules_to_save=["lm_head"])
    found = audited(tmp_path)
    assert "lm_head.weight" in {change.name for change in found.changes}
    assert_right(found, right)


def test_experts_are_told_apart_by_parameter(tmp_path: Path) -> None:
    """Both parameters of a fused module have factors, one wrapped in the other; the files hold experts one by one."""
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    merged = trained(tmp_path, "qwen3_moe", target_modules=[], target_parameters=names)
    assert len(merged) == 6
    base = load_file(tmp_path / "base" / "model.safetensors")
    found = audited(tmp_path)
    for layer in range(3):
        part = f"model.layers.{layer}.mlp.experts."
        inside = [c for c in found.changes if c.tensor.startswith(part)]
        assert {c.tensor for c in inside} == {f"{part}{expert}.down_proj.weight" for expert in range(4)}
        old = torch.stack([base[c.tensor] for c in inside]).norm()
        change = torch.tensor([c.size for c in inside]).norm()
        assert float(change / old) == pytest.approx(merged[f"{part}down_proj"], rel=1e-4)
    assert len(found.structure.unread) == 2 * 3
    assert all("base_layer" in name for name in found.structure.unread)
    assert found.classification.label == "partly-read"


def test_every_field_of_peft_is_known() -> None:
    """What is neither read nor harmless is empty as PEFT writes it by default, and refused otherwise."""
    fields, theirs = {field.name for field in dataclasses.fields(LoraConfig)}, LoraConfig()
    assert fields >= UNDERSTOOD | WITHOUT_EFFECT
    rest = fields - UNDERSTOOD - WITHOUT_EFFECT - {"peft_type"}
    assert rest >= {"use_dora", "layer_replication", "alora_invocation_tokens"}
    assert all(getattr(theirs, name) in (None, False) for name in rest)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"use_new_scaling": True}, "use_new_scaling"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"peft_type": "LOKR"}, "LOKR"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(settings: dict[str, object], named: str, tmp_path: Path) -> None:
    trained(tmp_path)
    reset(tmp_path, **settings)
    with pytest.raises(ArtifactError, match=named) as error:
        audited(tmp_path)
    assert any(way_out in str(error.value) for way_out in ("merge", "Merge", "Get the adapter again"))


def test_another_rank_and_targets_that_are_not_there(tmp_path: Path) -> None:
    trained(tmp_path)
    config = (tmp_path / "adapter" / CONFIG).read_text()
    wrong: list[dict[str, object]] = [
        {"r": 3}, {"target_modules": ["wo"]}, {"lora_alpha": None}, {"r": 0}, {"alpha_pattern": {"o_proj": "4"}},
        {"rank_pattern": {"(": 4}}, {"modules_to_save": 5}, {"target_modules": 7},
    ]  # fmt: skip
    for settings in wrong:
        (tmp_path / "adapter" / CONFIG).write_text(config)
        reset(tmp_path, **settings)
        with pytest.raises(MismatchError, match=r"PEFT cannot load .*made for another model.*Get the adapter again"):
            audited(tmp_path)


@pytest.mark.parametrize("settings", [{"use_new_scaling": False, "other": {}}, {"init_lora_weights": "gaussian"}])
def test_what_changes_nothing_is_read(settings: dict[str, object], tmp_path: Path) -> None:
    right = trained(tmp_path)
    reset(tmp_path, **settings)
    assert_right(audited(tmp_path), right)


def test_other_adapters_and_adapters_of_adapters(tmp_path: Path) -> None:
    model = tiny_base(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"])
        get_peft_model(model.network, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ArtifactError, match=r"IA3.*merge_and_unload"):
        audited(tmp_path)
    with pytest.raises(ModelError, match="Give that model, or a checkpoint it is merged into"):
        audit(str(tmp_path / "adapter"), tmp_path / "adapter")
