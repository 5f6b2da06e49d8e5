"""Pushing to a real local server that speaks the Hub's protocol: our files, in one commit, and clear refusals."""

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.hf_api
import pytest
from factor_models import sparse_edit
from hub_server import TOKEN, Hub, running_hub

from families import tiny_model
from steer2edit.artifacts import load_edit, save_edit
from steer2edit.artifacts.edits.adapter import read_members, save_combined
from steer2edit.artifacts.edits.hub import push as push_with_contract, pushed_files
from steer2edit.artifacts.edits.scorecard_section import write_scorecard_section
from steer2edit.artifacts.exports.export import export_edit
from steer2edit.errors import ArtifactError
from steer2edit.models import LanguageModel

# the Hub's client, where it uploads over plain HTTP
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
push = partial(push_with_contract, without_contract=True)
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "steer2edit.json", "steer2edit.safetensors"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # large files over plain HTTP
    with running_hub() as running:
        use_endpoint(monkeypatch, running.url)
        yield running


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT sets; it is read when the package is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model("llama")
    model = LanguageModel(model.network, name="someone/tiny")
    folder = tmp_path_factory.mktemp("edits")
    for seed, name in ((1, "edit"), (2, "other")):
        save_edit(model, sparse_edit(model, seed), folder / name)
    save_combined(model, read_members([folder / "edit", folder / "other"], [1.0, 0.5]), folder / "both")
    export_edit(folder / "edit", "gguf-lora", [0.5, 1.0], folder / "export", model=model)
    return folder


def test_an_edit(hub: Hub, folder: Path) -> None:
    (folder / "edit" / "notes.txt").write_text("private")
    try:
        pushed = push(folder / "edit", "me/edit")
    finally:
        (folder / "edit" / "notes.txt").unlink()
    ((repository, branch, files),) = hub.commits
    assert (repository, branch) == ("me/edit", "main")
    assert files == {name: (folder / "edit" / name).read_bytes() for name in FILES}
    assert pushed.url == f"{hub.url}/me/edit/commit/{1:040x}"
    assert pushed.repository == "me/edit"
    assert pushed.local_base is None
    assert hub.private == {"me/edit": False}


def test_a_card_without_a_contract_is_refused_unless_told(hub: Hub, folder: Path, tmp_path: Path) -> None:
    for what in ("edit", "both", "export"):
        with pytest.raises(ArtifactError, match=r"does not state a contract.*stress MODEL.*pass --without-contract"):
            push_with_contract(folder / what, "me/edit")
    assert hub.commits == []
    edit = Path(shutil.copytree(folder / "edit", tmp_path / "edit"))
    write_scorecard_section(edit, load_edit(edit).digest(), "### Contract\n\n| Plain | holds |\n")
    push_with_contract(edit, "me/edit")
    ((_, _, files),) = hub.commits
    assert "| Plain | holds |" in files["README.md"].decode()


def test_private_and_revision(hub: Hub, folder: Path) -> None:
    push(folder / "edit", "me/edit", private=True, revision="strong")
    assert hub.private == {"me/edit": True}
    assert [(repository, branch) for repository, branch, _ in hub.commits] == [("me/edit", "strong")]


def test_again(hub: Hub, folder: Path) -> None:
    push(folder / "edit", "me/edit")
    push(folder / "other", "me/edit")
    assert [set(files) for _, _, files in hub.commits] == [FILES, FILES]


def test_a_combined_edit(hub: Hub, folder: Path) -> None:
    push(folder / "both", "me/both")
    members = {f"members/{name}/{file}" for name in ("1-edit", "2-other") for file in FILES}
    assert set(hub.commits[0][2]) == (FILES - {"steer2edit.safetensors"}) | members


def test_an_export(hub: Hub, folder: Path) -> None:
    push(folder / "export", "me/export")
    assert set(hub.commits[0][2]) == {
        "README.md", "steer2edit.json", "edit-strength-0.5.gguf", "edit-strength-1.gguf",
    }  # fmt: skip


def test_a_local_base_becomes_the_hub_id_of_the_card(hub: Hub, folder: Path, tmp_path: Path) -> None:
    model = LanguageModel(tiny_model("llama").network, name="smollm2")
    model.network.name_or_path = str(tmp_path)
    save_edit(model, sparse_edit(model), tmp_path / "edit")
    assert json.loads((tmp_path / "edit" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tmp_path
    )
    assert push(tmp_path / "edit", "me/edit").local_base is None
    config = json.loads(hub.commits[0][2]["adapter_config.json"])
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_local_base_that_the_card_does_not_know_is_reported(hub: Hub, tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.network.name_or_path = str(tmp_path)
    save_edit(model, sparse_edit(model), tmp_path / "edit")
    assert push(tmp_path / "edit", "me/edit").local_base == str(tmp_path)
    assert json.loads(hub.commits[0][2]["adapter_config.json"])["base_model_name_or_path"] == tmp_path.name


@pytest.mark.parametrize("what", ["edit", "combined", "peft", "vllm", "gguf-lora"])
def test_no_path_of_this_machine_is_published(hub: Hub, tmp_path: Path, what: str) -> None:
    base = tmp_path / "my-base"
    base.mkdir()
    model = LanguageModel(tiny_model("llama").network, name=str(base))
    model.network.name_or_path = str(base)
    save_edit(model, sparse_edit(model), tmp_path / "edit")
    if what == "combined":
        save_combined(model, read_members([tmp_path / "edit"] * 2, [1.0, 0.5]), tmp_path / what)
    elif what != "edit":
        export_edit(tmp_path / "edit", what, [1.0], tmp_path / what, model=model)
    kept = json.loads((tmp_path / "edit" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert kept == str(base)  # here it is what loads the base
    push(tmp_path / what, "me/it")
    published = hub.commits[0][2]
    assert [name for name, content in published.items() if str(tmp_path).encode() in content] == []
    assert "my-base" in published["README.md"].decode()
    for name, content in published.items():
        (tmp_path / "again" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "again" / name).write_bytes(content)
    assert set(pushed_files(tmp_path / "again")) == set(published)  # which reads everything, hashes included


class TestRefused:
    def test_no_artifact_of_ours(self, hub: Hub, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text("{}")
        with pytest.raises(ArtifactError, match=r"has no steer2edit\.json: steer2edit did not write it"):
            push(tmp_path, "me/edit")
        assert not hub.private

    def test_a_checkpoint(self, hub: Hub, tmp_path: Path) -> None:
        (tmp_path / "steer2edit.json").write_text('{"kind": "edited-checkpoint"}')
        with pytest.raises(ArtifactError, match="holds a edited-checkpoint"):
            push(tmp_path, "me/edit")

    def test_no_directory(self, hub: Hub, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="steer2edit did not write it"):
            push(tmp_path / "nothing", "me/edit")

    def test_no_model_card(self, hub: Hub, folder: Path, tmp_path: Path) -> None:
        for path in (folder / "edit").iterdir():
            if path.name != "README.md":
                (tmp_path / path.name).write_bytes(path.read_bytes())
        with pytest.raises(ArtifactError, match=r"README\.md is missing"):
            push(tmp_path, "me/edit")

    def test_a_changed_export(self, hub: Hub, folder: Path, tmp_path: Path) -> None:
        for path in (folder / "export").iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / "edit-strength-1.gguf").write_bytes(b"GGUF")
        with pytest.raises(ArtifactError, match=r"edit-strength-1\.gguf is missing, or is not the file"):
            push(tmp_path, "me/edit")

    def test_an_export_that_points_outside(self, hub: Hub, folder: Path, tmp_path: Path) -> None:
        raw = json.loads((folder / "export" / "steer2edit.json").read_text())
        raw["adapters"][0]["files"] = {"../secret": "0" * 64}
        (tmp_path / "out").mkdir()
        (tmp_path / "secret").write_text("x")
        (tmp_path / "out" / "steer2edit.json").write_text(json.dumps(raw))
        with pytest.raises(ArtifactError, match="outside of its directory"):
            push(tmp_path / "out", "me/edit")
        assert not hub.private

    @pytest.mark.parametrize("name", ["a/b/c", "me/ed it", "-me/edit", ""])
    def test_the_name(self, hub: Hub, folder: Path, name: str) -> None:
        with pytest.raises(ArtifactError, match=f"{re.escape(repr(name))} is no name of a repository"):
            push(folder / "edit", name)

    def test_no_token(self, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        with pytest.raises(ArtifactError, match="there is no token for the Hugging Face Hub: run `hf auth login`"):
            push(folder / "edit", "me/edit")

    def test_another_token(self, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_other")
        with pytest.raises(ArtifactError, match=r"the Hub refused it .* The token is not valid"):
            push(folder / "edit", "me/edit")

    @pytest.mark.parametrize(("status", "remedy"), [(403, "The token may not write there"), (400, "Try again")])
    def test_what_the_hub_refuses(self, hub: Hub, folder: Path, status: int, remedy: str) -> None:
        hub.refuse_with = status
        with pytest.raises(ArtifactError, match=rf"cannot push to me/edit: the Hub refused it .*\. {remedy}"):
            push(folder / "edit", "me/edit")

    def test_offline(self, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ArtifactError, match=r"cannot be reached.*HF_HUB_OFFLINE is not set"):
            push(folder / "edit", "me/edit")

    def test_nobody_answers(self, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        use_endpoint(monkeypatch, "http://127.0.0.1:9")
        with pytest.raises(ArtifactError, match="the Hub cannot be reached"):
            push(folder / "edit", "me/edit")
