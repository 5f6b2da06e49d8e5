import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from artifact_models import logits, random_edit, relative, state_of, tiny_network
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from steer2edit.artifacts import EditManifest, load_edit, load_vectors, read_manifest, save_edit
from steer2edit.artifacts.edits.adapter import Member, save_combined
from steer2edit.artifacts.edits.lora import check_loads_through_peft
from steer2edit.artifacts.exports.export import export_edit
from steer2edit.artifacts.tensors import file_sha256
from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.editing import merged
from steer2edit.errors import ArtifactError, InvalidValueError, MismatchError
from steer2edit.models import LanguageModel

FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "steer2edit.json", "steer2edit.safetensors"}


def require_equal(read: WeightEdit, written: WeightEdit) -> None:
    assert list(read.sites) == list(written.sites)
    for site, expected in written.sites.items():
        for name in ("output_direction", "row", "magnitude", "importance"):
            mine, theirs = getattr(read.sites[site], name), getattr(expected, name)
            assert mine.shape == theirs.shape
            assert mine.numpy().tobytes() == theirs.numpy().tobytes()
    assert read.metadata == written.metadata


def small_edit(model: LanguageModel) -> WeightEdit:
    """Layer 1 only: two heads of 8 columns, of which the second is edited."""
    row = torch.zeros(16)
    row[8:] = torch.arange(8.0)
    u = torch.zeros(16)
    u[3] = -1.0
    site = SiteEdit(u, row, torch.tensor([0.0, 0.25]), torch.tensor([-0.125, 0.5]))
    return WeightEdit({Site(1, "attn"): site}, {"model": model.describe()})


def test_files_keys_and_values(tmp_path: Path, model: LanguageModel) -> None:
    save_edit(model, small_edit(model), tmp_path / "edit")
    assert {path.name for path in (tmp_path / "edit").iterdir()} == FILES
    adapter = load_file(tmp_path / "edit" / "adapter_model.safetensors")
    assert set(adapter) == {
        "base_model.model.model.layers.1.self_attn.o_proj.lora_A.weight",
        "base_model.model.model.layers.1.self_attn.o_proj.lora_B.weight",
    }
    a = adapter["base_model.model.model.layers.1.self_attn.o_proj.lora_A.weight"]
    u = adapter["base_model.model.model.layers.1.self_attn.o_proj.lora_B.weight"]
    assert a.dtype == u.dtype == torch.float32
    assert a.tolist() == [[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7]]
    assert u.tolist() == [[-1.0 if i == 3 else 0.0] for i in range(16)]
    with safe_open(tmp_path / "edit" / "steer2edit.safetensors", framework="pt") as file:
        assert set(file.keys()) == {"L1.attn.magnitude", "L1.attn.importance"}
        assert file.get_tensor("L1.attn.importance").tolist() == [-0.125, 0.5]
        assert file.metadata() == {"format": "pt", "kind": "weight-edit-components", "schema_version": "1"}


def test_adapter_config_is_pefts_own(tmp_path: Path, model: LanguageModel, edit: WeightEdit) -> None:
    save_edit(model, edit, tmp_path / "edit")
    written = json.loads((tmp_path / "edit" / "adapter_config.json").read_text())
    modules = [
        "model.layers.0.mlp.down_proj", "model.layers.0.self_attn.o_proj",
        "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.o_proj",
    ]  # fmt: skip
    assert written["target_modules"] == modules  # full names, sorted: never a pattern
    LoraConfig(
        r=1, lora_alpha=1, target_modules=modules, task_type="CAUSAL_LM", inference_mode=True,
        base_model_name_or_path="tiny-llama",
    ).save_pretrained(tmp_path / "peft")  # fmt: skip
    by_peft = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert written == by_peft | {"target_modules": modules}


def test_manifest(tmp_path: Path, model: LanguageModel, edit: WeightEdit) -> None:
    save_edit(model, edit, tmp_path / "edit")
    raw = json.loads((tmp_path / "edit" / "steer2edit.json").read_text())
    assert list(raw) == ["schema_version", "kind", "created", "edit", "sites", "files", "evaluation", "versions"]
    assert (raw["schema_version"], raw["kind"], raw["evaluation"]) == (1, "weight-edit", None)
    assert raw["edit"] == edit.metadata
    assert raw["sites"]["L1.mlp"] == {
        "module": "model.layers.1.mlp.down_proj", "shape": [16, 24], "components": 24, "edited_components": 24,
        "in_adapter": True, "experts": None, "targets": None,
    }  # fmt: skip
    manifest = read_manifest(tmp_path / "edit", EditManifest)
    assert manifest.created.utcoffset().total_seconds() == 0
    assert set(manifest.files) == {"adapter_model.safetensors", "steer2edit.safetensors"}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_plain_peft_applies_exactly_the_edit(tmp_path: Path, build: Callable[[str], LanguageModel], kind: str) -> None:
    model = build(kind)
    edit = random_edit(model)
    save_edit(model, edit, tmp_path / "edit")
    base = logits(model.network)
    with merged(model, edit):
        expected = logits(model.network)
    assert relative(expected, base) > 1e-2
    with_adapter = PeftModel.from_pretrained(tiny_network(kind), tmp_path / "edit")
    assert relative(logits(with_adapter), expected) < 1e-4
    dense = tiny_network(kind)  # by hand: W + u aᵀ, [m, d] for GPT-2's Conv1D
    for site, module in model.sites.items():
        change = torch.outer(edit.sites[site].output_direction, edit.sites[site].row)
        dense.get_parameter(f"{module.name}.weight").data += change.T if kind == "gpt2" else change
    assert relative(logits(with_adapter), logits(dense)) < 1e-4
    assert relative(logits(with_adapter.merge_and_unload()), logits(dense)) < 1e-4


def test_the_card_loads_as_it_says(tmp_path: Path, model: LanguageModel) -> None:
    model.network.save_pretrained(tmp_path / "base")
    model = LanguageModel(type(model.network).from_pretrained(tmp_path / "base"), name=str(tmp_path / "base"))
    edit = random_edit(model)
    save_edit(model, edit, tmp_path / "edit")
    card = (tmp_path / "edit" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert 'from_pretrained("path/to/base")' in code
    assert str(tmp_path) not in card
    assert 'PeftModel.from_pretrained(base, "path/to/this/directory")' in code
    assert len(code.strip().splitlines()) == 4
    with merged(model, edit):
        expected = logits(model.network)
    assert relative(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "edit")), expected) < 1e-4


def test_round_trip_bit_for_bit(tmp_path: Path, model: LanguageModel, edit: WeightEdit) -> None:
    row = edit.sites[Site(0, "mlp")].row.clone()
    row[:3] = torch.tensor([-0.0, 1e-40, 3.4e38])
    sites = {**edit.sites, Site(0, "mlp"): replace(edit.sites[Site(0, "mlp")], row=row)}
    edit = WeightEdit(sites, {**edit.metadata, "note": "é ☃", "list": [1, 0.1, None, {"x": True}]})
    save_edit(model, edit, tmp_path / "edit")
    require_equal(load_edit(tmp_path / "edit"), edit)
    require_equal(load_edit(str(tmp_path / "edit")), edit)


def test_same_edit_same_bytes(tmp_path: Path, model: LanguageModel, edit: WeightEdit) -> None:
    for name in ("one", "two"):
        save_edit(model, edit, tmp_path / name)
    for name in FILES - {"README.md", "steer2edit.json"}:  # those two have the time in them
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_sites_that_change_nothing_are_kept_beside_the_adapter(tmp_path: Path, model: LanguageModel) -> None:
    edit = random_edit(model)
    still, half = Site(0, "attn"), Site(1, "mlp")
    sites = dict(edit.sites)
    sites[still] = replace(sites[still], row=-0.0 * sites[still].row, magnitude=0 * sites[still].magnitude)
    sites[half] = replace(sites[half], row=sites[half].row * (torch.arange(24) < 3))
    edit = WeightEdit(sites, edit.metadata)
    save_edit(model, edit, tmp_path / "edit")
    modules = json.loads((tmp_path / "edit" / "adapter_config.json").read_text())["target_modules"]
    assert modules == [
        "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.o_proj",
    ]  # fmt: skip
    assert len(load_file(tmp_path / "edit" / "adapter_model.safetensors")) == 6
    assert {k for k in load_file(tmp_path / "edit" / "steer2edit.safetensors") if k.startswith("L0.attn")} == {
        "L0.attn.output_direction", "L0.attn.row", "L0.attn.magnitude", "L0.attn.importance",
    }  # fmt: skip
    require_equal(load_edit(tmp_path / "edit"), edit)


def test_bfloat16_model_keeps_float32_factors(tmp_path: Path, model: LanguageModel) -> None:
    model = LanguageModel(model.network.bfloat16())
    edit = random_edit(model)
    save_edit(model, edit, tmp_path / "edit")
    require_equal(load_edit(tmp_path / "edit"), edit)


def test_metadata_without_a_model_gets_this_one(tmp_path: Path, model: LanguageModel, edit: WeightEdit) -> None:
    save_edit(model, WeightEdit(edit.sites), tmp_path / "edit")
    assert load_edit(tmp_path / "edit").metadata == {"model": model.describe()}
    with pytest.raises(InvalidValueError, match=r"an edit's model must be .* got 'llama'"):
        save_edit(model, WeightEdit(edit.sites, {"model": "llama"}), tmp_path / "other")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_users_network_stays_as_it_was(tmp_path: Path, build: Callable[[str], LanguageModel], kind: str) -> None:
    model = build(kind)
    before, modules = state_of(model.network), dict(model.network.named_modules())
    save_edit(model, random_edit(model), tmp_path / "edit")
    assert dict(model.network.named_modules()) == modules  # the same objects: nothing is wrapped
    after = model.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_keys_that_peft_would_ignore_are_caught(
    tmp_path: Path, model: LanguageModel, edit: WeightEdit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_prefix(module: str) -> tuple[str, str]:
        return f"{module}.lora_A.weight", f"{module}.lora_B.weight"

    monkeypatch.setattr("steer2edit.artifacts.edits.lora.adapter_keys", without_prefix)
    with pytest.raises(ArtifactError, match="PEFT does not load"):
        save_edit(model, edit, tmp_path / "edit")
    assert list(tmp_path.iterdir()) == []


def test_check_sees_other_values_scaling_and_modules(tmp_path: Path, model: LanguageModel, edit: WeightEdit) -> None:
    save_edit(model, edit, tmp_path / "edit")
    pairs = {model.sites[s].name: (e.row[None], e.output_direction[:, None]) for s, e in edit.sites.items()}
    check_loads_through_peft(model.network, tmp_path / "edit", pairs)
    name = "model.layers.0.mlp.down_proj"
    with pytest.raises(ArtifactError, match=f"1 of 4 modules differ, the first is {name}"):
        check_loads_through_peft(
            model.network, tmp_path / "edit", {**pairs, name: (2 * pairs[name][0], pairs[name][1])}
        )
    with pytest.raises(ArtifactError, match=f"1 of 3 modules differ, the first is {name}"):
        check_loads_through_peft(model.network, tmp_path / "edit", {k: v for k, v in pairs.items() if k != name})
    change_json(tmp_path / "edit" / "adapter_config.json", lambda c: c.update(lora_alpha=2))
    with pytest.raises(ArtifactError, match="4 of 4 modules differ"):
        check_loads_through_peft(model.network, tmp_path / "edit", pairs)


@pytest.mark.parametrize("stage", ["write_manifest", "write_edit_card", "load_edit", "check_loads_through_peft"])
def test_ctrl_c_leaves_nothing(
    tmp_path: Path, model: LanguageModel, edit: WeightEdit, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"steer2edit.artifacts.edits.adapter.{stage}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_edit(model, edit, tmp_path / "made" / "edit")
    assert list(tmp_path.iterdir()) == []


def test_existing_directory_is_not_overwritten(tmp_path: Path, model: LanguageModel, edit: WeightEdit) -> None:
    save_edit(model, edit, tmp_path / "edit")
    with pytest.raises(ArtifactError, match="exists already"):
        save_edit(model, small_edit(model), tmp_path / "edit")
    require_equal(load_edit(tmp_path / "edit"), edit)
    save_edit(model, small_edit(model), tmp_path / "edit", overwrite=True)
    require_equal(load_edit(tmp_path / "edit"), small_edit(model))
    assert [path.name for path in tmp_path.iterdir()] == ["edit"]


def test_edit_of_another_model_is_refused(tmp_path: Path, model: LanguageModel, build) -> None:
    edit = random_edit(model)
    other = tiny_network("llama")
    other.model.layers[0].mlp.down_proj.weight.data += 1
    with pytest.raises(MismatchError, match="fingerprint"):
        save_edit(LanguageModel(other), edit, tmp_path / "edit")
    wide = SiteEdit(torch.ones(16), torch.ones(32), torch.ones(32), torch.ones(32))
    with pytest.raises(MismatchError, match="shape"):
        save_edit(model, WeightEdit({Site(0, "mlp"): wide}), tmp_path / "edit")
    assert list(tmp_path.iterdir()) == []


EVALUATION = {
    "metrics": {"harmful_refused": "harmful requests refused"},
    "conditions": [
        {"kind": "base", "label": "base", "metrics": {
            "harmful_refused": {"value": 0.0417, "low": 0.0115, "high": 0.14, "n": 48}}},
        {"kind": "edit", "label": "ρ|α", "metrics": {
            "harmful_refused": {"value": 0.5833, "low": 0.4428, "high": 0.7115, "n": 46, "unscored": 2},
            "kl": {"value": None, "low": None, "high": None, "n": 0, "unscored": 5}}},
    ],
}  # fmt: skip


def test_card_shows_the_evaluation(tmp_path: Path, model: LanguageModel, edit: WeightEdit) -> None:
    save_edit(model, edit, tmp_path / "edit", evaluation=EVALUATION)
    card = (tmp_path / "edit" / "README.md").read_text(encoding="utf-8")
    assert "| | harmful_refused | kl |\n| --- | ---: | ---: |\n" in card
    assert "| base | 0.0417 [0.0115, 0.14] (n = 48) | not scored |\n" in card
    assert "| ρ\\|α | 0.583 [0.443, 0.712] (n = 46, 2 not scored) | not scored |\n" in card
    assert "- harmful_refused: harmful requests refused\n" in card
    assert read_manifest(tmp_path / "edit", EditManifest).evaluation == EVALUATION


def test_no_text_of_a_card_becomes_markup(tmp_path: Path, model: LanguageModel) -> None:
    hostile = "m <img src=x> `c` **b** a|b [x](javascript:alert(1))\n[x]: javascript:alert(2)\n# T \\| \x1b[2J"
    shown = (
        r"m &lt;img src=x> \`c\` \*\*b\*\* a\|b [x]\(javascript:alert(1)) [x]\: javascript:alert(2) # T \\\| "
        "⟨U+001B⟩[2J"
    )
    named = LanguageModel(model.network, name=hostile, revision=hostile)
    edit = replace(small_edit(named), metadata={"method": hostile, "vectors": {"sha256": hostile}})
    metrics = {hostile: {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}}
    evaluation = {
        "beyond_budget": hostile, "metrics": {hostile: hostile},
        "conditions": [{"kind": "edit", "label": hostile, "metrics": metrics}],
    }  # fmt: skip
    save_edit(named, edit, tmp_path / "edit", evaluation=evaluation)
    save_combined(named, [Member(tmp_path / "edit", load_edit(tmp_path / "edit"), 1.0)], tmp_path / "both")
    export_edit(tmp_path / "edit", "peft", [1.0], tmp_path / "export")
    # of the edit: name (2), budget, method, metric (2), meaning, label, revision, digest
    counts = {"edit": 10, "both": 2, "export": 1}
    for folder, count in counts.items():
        card = (tmp_path / folder / "README.md").read_text(encoding="utf-8")
        text = re.sub(r"^```.*?^```$", "", card, flags=re.DOTALL | re.MULTILINE)  # examples, in which nothing is markup
        assert text.count(shown) == count
        assert not re.search(r"<img|`c`|\]\(java|\x1b|^# T", text, re.MULTILINE)
        assert len(re.findall("^```", card, re.MULTILINE)) == 2


def test_card_without_evaluation(tmp_path: Path, model: LanguageModel) -> None:
    save_edit(model, small_edit(model), tmp_path / "edit")
    card = (tmp_path / "edit" / "README.md").read_text(encoding="utf-8")
    front = card.split("---\n")[1]
    assert front == (
        "library_name: peft\npipeline_tag: text-generation\n"
        "tags:\n- steer2edit\n- lora\n- activation-steering\n- model-editing\n"
    )
    assert "## Evaluation" not in card
    assert "- attention: 1 of 2 heads in 1 layers\n  (1 promoted, λ > 0; 0 suppressed, λ < 0)\n" in card
    assert "| L1.H1 | +0.250 | +0.500 |" in card
    assert "MLP" not in card
    assert model.fingerprint in card


def test_card_names_the_hub_model(tmp_path: Path, model: LanguageModel) -> None:
    revision = "a" * 40
    for name, hub_id in (("org/Name-1.5", "org/Name-1.5"), ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct")):
        named = LanguageModel(model.network, name=name, revision=revision)
        save_edit(named, small_edit(named), tmp_path / hub_id)
        card = (tmp_path / hub_id / "README.md").read_text(encoding="utf-8")
        assert f"\nbase_model: {hub_id}\n" in card
        assert f'from_pretrained("{hub_id}", revision="{revision}")' in card
        assert json.loads((tmp_path / hub_id / "adapter_config.json").read_text())["revision"] == revision


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"rows": []}, "conditions: Field required"),
        ({"conditions": [{"label": "x", "metrics": {"m": 0.5}}]}, "conditions.0.metrics.m"),
        ({"conditions": [], "x": float("nan")}, "cannot be written as JSON"),
    ],
)
def test_evaluation_of_another_form(
    tmp_path: Path, model: LanguageModel, edit: WeightEdit, evaluation: dict, message: str
) -> None:
    with pytest.raises(InvalidValueError, match=message):
        save_edit(model, edit, tmp_path / "edit", evaluation=evaluation)
    assert list(tmp_path.iterdir()) == []


# --- directories that are not what they say ---


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_tensors(path: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.fixture
def saved(tmp_path: Path, model: LanguageModel, edit: WeightEdit) -> Path:
    save_edit(model, edit, tmp_path / "edit")
    return tmp_path / "edit"


def test_no_directory_or_another_one(tmp_path: Path, model: LanguageModel, edit: WeightEdit, saved: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no edit"):
        load_edit(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="holds no edit"):
        load_edit(saved / "README.md")
    with pytest.raises(ArtifactError, match="holds no edit"):
        load_edit(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "steer2edit.json").write_text('{"schema_version": 2, "kind": "edited-checkpoint"}')
    with pytest.raises(ArtifactError, match="describes a 'edited-checkpoint'"):
        load_edit(tmp_path / "checkpoint")
    with pytest.raises(ArtifactError, match=r"'base_model.*is not the name of a steering vector"):
        load_vectors(saved / "adapter_model.safetensors")
    with pytest.raises(ArtifactError, match="holds 'weight-edit-components'"):
        load_vectors(saved / "steer2edit.safetensors")
    (saved / "steer2edit.json").unlink()
    with pytest.raises(ArtifactError, match="holds no edit of steer2edit"):
        load_edit(saved)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "steer2edit.safetensors"])
def test_truncated_or_missing_tensors(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        (saved / name).write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=f"{name} is not a readable safetensors file"):
            load_edit(saved)
    (saved / name).unlink()
    with pytest.raises(ArtifactError, match=f"there is no file .*{name}"):
        load_edit(saved)


A = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"


@pytest.mark.parametrize("name", ["adapter_model", "steer2edit"])
def test_changed_tensors(saved: Path, name: str) -> None:
    change_tensors(saved / f"{name}.safetensors", lambda t: t[A if A in t else "L0.mlp.magnitude"].mul_(2))
    with pytest.raises(ArtifactError, match="another SHA-256"):
        load_edit(saved)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("adapter_model", lambda t: t[A].fill_(float("nan")), "non-finite"),
        ("adapter_model", lambda t: t[A][0, 3:4].fill_(float("inf")), "non-finite"),
        ("steer2edit", lambda t: t["L0.mlp.importance"].fill_(float("nan")), "non-finite"),
        ("adapter_model", lambda t: t.pop(A), "base_model.*lora_A"),
        ("steer2edit", lambda t: t.pop("L0.attn.magnitude"), "L0.attn.magnitude"),
        ("adapter_model", lambda t: t.update({A: t[A][:, :12].clone()}), r"\(1, 12\), not torch.float32 \(1, 24"),
        ("adapter_model", lambda t: t.update({A: t[A].repeat(2, 1)}), r"\(2, 24\), not torch.float32 \(1, 24"),
        ("adapter_model", lambda t: t.update({A: t[A].half()}), "is torch.float16"),
        ("adapter_model", lambda t: t.update({"x.lora_A.weight": torch.ones(1)}), r"\(1,\), not nothing"),
        ("steer2edit", lambda t: t.update({"L9.attn.magnitude": torch.ones(1)}), "L9.attn.magnitude .* not nothing"),
    ],
)  # fmt: skip
def test_changed_tensors_of_the_same_hash(
    saved: Path, name: str, change: Callable[[dict], object], message: str
) -> None:
    file = saved / f"{name}.safetensors"
    change_tensors(file, change)
    change_json(saved / "steer2edit.json", lambda c: c["files"].update({file.name: file_sha256(file)}))
    with pytest.raises(ArtifactError, match=f"does not hold what its steer2edit.json says.*({message})"):
        load_edit(saved)


def test_files_of_another_edit(tmp_path: Path, model: LanguageModel, saved: Path) -> None:
    save_edit(model, random_edit(model, seed=2), tmp_path / "other")
    (saved / "adapter_model.safetensors").write_bytes((tmp_path / "other" / "adapter_model.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match="mixed up with another edit"):
        load_edit(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(r=8), "r is 8, but this edit needs 1"),
        (lambda c: c.pop("lora_alpha"), "lora_alpha is None, but this edit needs 1"),
        (lambda c: c.update(use_rslora=True), "use_rslora is True"),
        (lambda c: c.update(alpha_pattern={"o_proj": 2}), "alpha_pattern is"),
        (lambda c: c["target_modules"].append("lm_head"), "targets is"),
        (lambda c: c.update(target_modules="all-linear"), "targets is \\['all-linear'"),
        (lambda c: c.update(peft_type="IA3"), "peft_type is IA3"),
    ],
)
def test_changed_adapter_config(saved: Path, change: Callable[[dict], object], message: str) -> None:
    change_json(saved / "adapter_config.json", change)
    with pytest.raises(ArtifactError, match=message):
        load_edit(saved)


def test_harmless_changes_are_accepted(saved: Path, edit: WeightEdit) -> None:
    change_json(saved / "adapter_config.json", lambda c: c.update(base_model_name_or_path="elsewhere"))
    change_json(saved / "steer2edit.json", lambda c: c.update(added_by_a_later_version=1))
    (saved / "README.md").unlink()
    require_equal(load_edit(saved), edit)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema_version=2), "Upgrade"),
        (lambda c: c["sites"].update({"layer 0": c["sites"]["L0.mlp"]}), "is damaged: sites: not a site: 'layer 0'"),
        (lambda c: c["sites"]["L0.mlp"].update(components=7), r"L0\.mlp\..* not torch.float32 \(7,\)"),
        (lambda c: c["sites"]["L0.mlp"].update(shape=[16]), "is damaged: sites.L0.mlp.shape"),
        (lambda c: c["sites"]["L0.mlp"].update(in_adapter=False), "targets is"),
        (lambda c: c["sites"].clear(), "is damaged: sites"),
        (lambda c: c["edit"].pop("model"), "is damaged: edit"),
        (lambda c: c["edit"]["model"].update(fingerprint="x"), "is damaged: edit"),
        (lambda c: c["files"].clear(), "another SHA-256"),
        (lambda c: c["edit"].update(drift={"kl": math.nan, "requests": 4}), "NaN is not a finite number"),
        (lambda c: c["edit"].update(drift=0.03), r"is damaged: edit\.drift"),
        (lambda c: c["edit"].update(hyperparameters={"alpha": "x"}), r"is damaged: edit\.hyperparameters\.alpha"),
        (lambda c: c["edit"].update(rules=None), r"is damaged: edit\.rules"),
        (lambda c: c["edit"].update(vectors={"effects": {}}), r"is damaged: edit\.vectors\.effects\.decided_by"),
        (lambda c: c["edit"]["model"].update(chat={"arguments": 3}), r"is damaged: edit\.model\.chat\.arguments"),
    ],
)
def test_changed_manifest(saved: Path, change: Callable[[dict], object], message: str) -> None:
    change_json(saved / "steer2edit.json", change)
    with pytest.raises(ArtifactError, match=message):
        load_edit(saved)
