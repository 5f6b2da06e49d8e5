"""Several edits as one adapter: PEFT applies exactly their sum, for every family; the members stay readable."""

import json
from pathlib import Path

import pytest
import torch
from artifact_models import logits, relative
from factor_models import sparse_edit
from peft import PeftModel
from safetensors.torch import load_file

from families import tiny_model, tiny_network
from steer2edit.artifacts import load_edit, save_edit
from steer2edit.artifacts.edits.adapter import load_members, read_members, save_combined
from steer2edit.core import WeightEdit
from steer2edit.editing import edited, merged
from steer2edit.errors import ArtifactError, InvalidValueError, MismatchError
from steer2edit.models import LanguageModel

WEIGHTS = (1.0, -0.5)
CONFIG = "adapter_config.json"


def save_two(model: LanguageModel, folder: Path) -> list[Path]:
    for seed, name in ((1, "one"), (2, "two")):
        save_edit(model, sparse_edit(model, seed), folder / name)
    return [folder / "one", folder / "two"]


@pytest.fixture
def model() -> LanguageModel:
    return tiny_model("llama")


@pytest.fixture
def directories(tmp_path: Path, model: LanguageModel) -> list[Path]:
    return save_two(model, tmp_path)


@pytest.fixture
def combined(tmp_path: Path, model: LanguageModel, directories: list[Path]) -> Path:
    save_combined(model, read_members(directories, WEIGHTS), tmp_path / "both")
    return tmp_path / "both"


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "qwen3", "qwen3_moe", "gpt_oss", "llama4_text", "falcon_h1", "llava"]
)
def test_the_adapter_is_the_sum(tmp_path: Path, family: str) -> None:
    """PEFT with the combined adapter = both edits' hooks = W + Σ w ΔW."""
    model = tiny_model(family)
    save_combined(model, read_members(save_two(model, tmp_path), WEIGHTS), tmp_path / "both")
    (one, w1), (two, w2) = load_members(tmp_path / "both")
    base = logits(model.network)
    with merged(model, one, w1), merged(model, two, w2, allow_mismatch=True):
        expected = logits(model.network)
    assert relative(expected, base) > 1e-2
    with edited(model, one, w1), edited(model, two, w2):
        assert relative(logits(model.network), expected) < 1e-4
    with_adapter = PeftModel.from_pretrained(tiny_network(family), tmp_path / "both")
    assert relative(logits(with_adapter), expected) < 1e-4


def test_files_and_manifest(combined: Path, directories: list[Path], model: LanguageModel) -> None:
    edit_files = {"README.md", CONFIG, "adapter_model.safetensors", "steer2edit.json", "steer2edit.safetensors"}
    assert {p.name for p in combined.iterdir()} == {*edit_files, "members"} - {"steer2edit.safetensors"}
    assert {p.name for p in (combined / "members").iterdir()} == {"1-one", "2-two"}
    assert {p.name for p in (combined / "members" / "1-one").iterdir()} == edit_files
    raw = json.loads((combined / "steer2edit.json").read_text())
    assert list(raw) == [
        "schema_version", "kind", "created", "base", "members", "rank", "modules", "interference", "files", "versions",
    ]  # fmt: skip
    assert (raw["schema_version"], raw["kind"], raw["rank"]) == (1, "combined-edit", 2)
    assert raw["base"]["fingerprint"] == model.fingerprint
    assert [(m["name"], m["weight"]) for m in raw["members"]] == [("1-one", 1.0), ("2-two", -0.5)]
    assert raw["interference"]["sites"].keys() == {str(site) for site in model.sites}
    config = json.loads((combined / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], len(config["target_modules"])) == (2, 2, 6)
    adapter = load_file(combined / "adapter_model.safetensors")
    key = "base_model.model.model.layers.1.mlp.down_proj.lora_{}.weight"
    (one, w1), (two, w2) = load_members(combined)
    for edit, weight, row in ((one, w1, 0), (two, w2, 1)):
        site = next(e for s, e in edit.sites.items() if str(s) == "L1.mlp")
        assert torch.equal(adapter[key.format("A")][row], site.row * weight)
        assert torch.equal(adapter[key.format("B")][:, row], site.output_direction)


def test_members_are_the_edits_that_were_given(combined: Path, directories: list[Path]) -> None:
    for (member, weight), directory, expected in zip(load_members(combined), directories, WEIGHTS, strict=True):
        assert weight == expected
        assert member.metadata == load_edit(directory).metadata
    assert [weight for _, weight in load_members(directories[0])] == [1.0]


def test_edits_of_one_direction_give_rank_one(tmp_path: Path, model: LanguageModel) -> None:
    edit = sparse_edit(model)
    for name in ("one", "two"):
        save_edit(model, edit, tmp_path / name)
    interference = save_combined(model, read_members([tmp_path / "one", tmp_path / "two"], [1.0, 1.0]), tmp_path / "b")
    config = json.loads((tmp_path / "b" / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (1, 1)
    assert interference.interference == pytest.approx(1)


def test_sites_of_one_edit_only(tmp_path: Path, model: LanguageModel) -> None:
    """One edit of the attention, one of the MLP: rank 1 everywhere, nothing to interfere."""
    whole = sparse_edit(model)
    for block in ("attn", "mlp"):
        sites = {s: e for s, e in whole.sites.items() if s.block == block}
        save_edit(model, WeightEdit(sites, whole.metadata), tmp_path / block)
    members = read_members([tmp_path / "attn", tmp_path / "mlp"], [1.0, 1.0])
    assert save_combined(model, members, tmp_path / "b").interference == pytest.approx(0)
    with merged(model, whole):
        expected = logits(model.network)
    adapter = PeftModel.from_pretrained(tiny_network("llama"), tmp_path / "b")
    assert relative(logits(adapter), expected) < 1e-4


def test_a_combined_edit_among_the_edits(tmp_path: Path, model: LanguageModel, combined: Path) -> None:
    """Its members take part with their weights multiplied."""
    save_edit(model, sparse_edit(model, 3), tmp_path / "three")
    members = read_members([combined, tmp_path / "three"], [2.0, 1.0])
    assert [member.weight for member in members] == [2.0, -1.0, 1.0]
    save_combined(model, members, tmp_path / "all")
    assert [weight for _, weight in load_members(tmp_path / "all")] == [2.0, -1.0, 1.0]


class TestRefused:
    def test_another_base(self, tmp_path: Path, directories: list[Path]) -> None:
        other = tiny_model("llama", seed=5)
        save_edit(other, sparse_edit(other), tmp_path / "other")
        with pytest.raises(MismatchError, match="edits of different weights cannot be combined"):
            read_members([directories[0], tmp_path / "other"], [1.0, 1.0])

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ([1.0], "got 1 weights for 2 edits"),
            ([1.0, 0.0], "other than 0, got 0.0"),
            ([1.0, float("nan")], "other than 0, got nan"),
            ([float("inf"), 1.0], "other than 0, got inf"),
        ],
    )
    def test_weights(self, directories: list[Path], weights: list[float], message: str) -> None:
        with pytest.raises(InvalidValueError, match=message):
            read_members(directories, weights)

    def test_edits_that_cancel_each_other(self, tmp_path: Path, model: LanguageModel, directories: list[Path]) -> None:
        members = read_members([directories[0], directories[0]], [1.0, -1.0])
        with pytest.raises(InvalidValueError, match="cancel each other exactly"):
            save_combined(model, members, tmp_path / "nothing")
        assert not (tmp_path / "nothing").exists()

    def test_no_edit(self, tmp_path: Path, directories: list[Path]) -> None:
        with pytest.raises(ArtifactError, match="holds no edit"):
            read_members([directories[0], tmp_path / "nothing"], [1.0, 1.0])

    def test_another_shape(self, tmp_path: Path, directories: list[Path]) -> None:
        with pytest.raises(MismatchError, match="are for a weight of shape"):
            save_combined(tiny_model("qwen3"), read_members(directories, WEIGHTS), tmp_path / "both")
        assert not (tmp_path / "both").exists()

    def test_a_changed_adapter(self, combined: Path) -> None:
        path = combined / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
        with pytest.raises(ArtifactError, match=r"is not the file that steer2edit\.json describes"):
            load_members(combined)

    def test_another_rank(self, combined: Path) -> None:
        change_json(combined / CONFIG, r=4)
        with pytest.raises(ArtifactError, match="r is 4, but this edit needs 2"):
            load_members(combined)

    def test_another_member(self, combined: Path, directories: list[Path]) -> None:
        for path in directories[1].iterdir():
            (combined / "members" / "1-one" / path.name).write_bytes(path.read_bytes())
        with pytest.raises(ArtifactError, match="is another edit than the one that was combined"):
            load_members(combined)

    @pytest.mark.parametrize("name", ["../one", "/etc", "a/b", ".hidden", ""])
    def test_a_member_outside_of_the_directory(self, combined: Path, name: str) -> None:
        raw = json.loads((combined / "steer2edit.json").read_text())
        raw["members"][0]["name"] = name
        change_json(combined / "steer2edit.json", members=raw["members"])
        with pytest.raises(ArtifactError, match=r"is damaged: members\.0\.name"):
            load_members(combined)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"schema_version": 2}, "Upgrade"),
            ({"kind": "weight-edit"}, "is damaged: edit"),
            ({"members": []}, "is damaged: members"),
            ({"rank": 0}, "is damaged: rank"),
        ],
    )
    def test_a_changed_manifest(self, combined: Path, changes: dict[str, object], message: str) -> None:
        change_json(combined / "steer2edit.json", **changes)
        with pytest.raises(ArtifactError, match=message):
            load_members(combined)


def test_a_member_is_its_files_and_nothing_below_them(
    tmp_path: Path, model: LanguageModel, directories: list[Path]
) -> None:
    """Also where the combined edit is written into a member's own folder."""
    (directories[0] / ".git").mkdir()
    (directories[0] / "dangling").symlink_to("nowhere")
    save_combined(model, read_members(directories, WEIGHTS), directories[0] / "both")
    kept = directories[0] / "both" / "members" / "1-one"
    assert {path.name for path in kept.iterdir()} == {path.name for path in directories[0].iterdir() if path.is_file()}
    assert len(load_members(directories[0] / "both")) == 2
