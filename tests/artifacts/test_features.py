"""Features of sparse autoencoders: SAELens folders and Neuronpedia's exports, to sites, to a file, to an edit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from steer2edit.artifacts import load_vectors, read_vectors
from steer2edit.artifacts.vector_files.foreign import hooked_place, read_sae_feature
from steer2edit.cli import app
from steer2edit.core import Site, SteeringVectors
from steer2edit.editing import convert
from steer2edit.errors import ArtifactError, InvalidValueError, MismatchError
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import LanguageModel
from steer2edit.steering.contrast import Contrast, ContrastSet
from steer2edit.steering.extract import measure_inputs
from tiny_chat import tiny_chat_model

DECODER = torch.arange(12.0).reshape(4, 3) + 1


def sae(folder: Path, hook: str = "blocks.2.hook_mlp_out", *, decoder: torch.Tensor = DECODER, **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"d_in": decoder.shape[1], "d_sae": len(decoder), "hook_name": hook, "model_name": "tiny", **more}
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {"W_dec": decoder, "W_enc": decoder.T.contiguous(), "b_dec": torch.zeros(decoder.shape[1])}
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


@pytest.mark.parametrize(
    ("hook", "place"),
    [
        ("blocks.2.hook_mlp_out", Site(2, "mlp")),
        ("blocks.2.hook_attn_out", Site(2, "attn")),
        ("blocks.2.hook_resid_post", 2),
        ("blocks.2.hook_resid_pre", 1),
        ("model.layers.7.mlp", Site(7, "mlp")),
        ("model.layers.7.self_attn.o_proj", Site(7, "attn")),
        ("model.layers.7", 7),
    ],
)
def test_hooks(hook: str, place: Site | int) -> None:
    assert hooked_place(hook) == place


@pytest.mark.parametrize("hook", ["blocks.2.attn.hook_z", "blocks.2.hook_resid_mid", "hook_embed", "", None, 3])
def test_hooks_that_are_no_place(hook: object) -> None:
    with pytest.raises(InvalidValueError, match="is no place that can be used"):
        hooked_place(hook)


def test_the_embedding_is_no_place() -> None:
    with pytest.raises(InvalidValueError, match="what the embedding puts out"):
        hooked_place("blocks.0.hook_resid_pre")


class TestSaeLens:
    def test_the_decoder_row_is_v(self, tmp_path: Path) -> None:
        found = read_sae_feature(sae(tmp_path / "sae"), 2)
        assert isinstance(found, SteeringVectors)
        assert found.sites[Site(2, "mlp")].steering_vector.tolist() == [7, 8, 9]
        assert not found.has_input_means
        assert found.metadata == {
            "origin": "imported", "format": "SAELens", "file": "sae", "feature": 2, "hook": "blocks.2.hook_mlp_out",
            "model_name": "tiny",
        }  # fmt: skip

    def test_of_the_residual_stream(self, tmp_path: Path) -> None:
        nested = {"hook_name": "blocks.1.hook_resid_post", "model_name": "m"}
        found = read_sae_feature(sae(tmp_path / "sae", metadata=nested), 0)
        assert not found.sites
        assert found.block_outputs[1].difference.tolist() == [1, 2, 3]

    def test_a_transcoder_writes_where_it_says(self, tmp_path: Path) -> None:
        more = {"d_in": 5, "d_out": 3, "hook_name_out": "blocks.2.hook_attn_out"}
        found = read_sae_feature(sae(tmp_path / "sae", **more), 0)
        assert isinstance(found, SteeringVectors)
        assert list(found.sites) == [Site(2, "attn")]

    @pytest.mark.parametrize("feature", [-1, 4])
    def test_feature_out_of_range(self, feature: int, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"W_dec of shape \[4, 3\]: give a --feature from 0 to 3"):
            read_sae_feature(sae(tmp_path / "sae"), feature)

    def test_widths_that_differ(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"a width of 9, and W_dec of sae_weights\.safetensors has 3"):
            read_sae_feature(sae(tmp_path / "sae", d_in=9), 0)

    def test_bad_files(self, tmp_path: Path) -> None:
        folder = sae(tmp_path / "sae", "blocks.2.attn.hook_z")
        with pytest.raises(ArtifactError, match=r"cfg\.json: 'blocks\.2\.attn\.hook_z' is no place"):
            read_sae_feature(folder, 0)
        with pytest.raises(ArtifactError, match="the vector is zero or not finite"):
            read_sae_feature(sae(tmp_path / "zero", decoder=torch.zeros(2, 3)), 0)
        save_file({"W": torch.ones(2)}, folder / "sae_weights.safetensors")
        with pytest.raises(ArtifactError, match="has no W_dec"):
            read_sae_feature(folder, 0)
        (folder / "sae_weights.safetensors").write_bytes(b"no")
        with pytest.raises(ArtifactError, match=r"sae_weights\.safetensors is not a sound safetensors file"):
            read_sae_feature(folder, 0)
        with pytest.raises(ArtifactError, match="cannot read"):
            read_sae_feature(tmp_path / "absent", 0)


class TestNeuronpedia:
    @pytest.mark.parametrize(
        "content",
        [
            {"modelId": "m", "hookName": "blocks.1.hook_mlp_out", "vector": [1, 2.5]},
            {"hook": "blocks.1.hook_mlp_out", "steeringVector": [1, 2.5], "strength": 4},
            {"modelId": "m", "layerNumber": 1, "hookType": "hook_mlp_out", "vector": [1, 2.5]},
        ],
    )
    def test_read(self, content: dict[str, Any], tmp_path: Path) -> None:
        (path := tmp_path / "np.json").write_text(json.dumps(content), encoding="utf-8")
        found = load_vectors(path)
        assert found.sites[Site(1, "mlp")].steering_vector.tolist() == [1, 2.5]
        assert found.metadata["format"] == "Neuronpedia"

    @pytest.mark.parametrize("vector", [None, [], "x", [1, "2"], [True]])
    def test_without_a_vector(self, vector: object, tmp_path: Path) -> None:
        (path := tmp_path / "np.json").write_text(json.dumps({"hookName": "blocks.1.hook_mlp_out", "vector": vector}))
        with pytest.raises(ArtifactError, match="has no vector: an export of Neuronpedia has"):
            read_vectors(path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: object) -> None:
        app(["vectors", *map(str, words)], standalone_mode=False)

    folder, out = sae(tmp_path / "sae", "blocks.2.hook_resid_post"), tmp_path / "v.safetensors"
    run("--from-sae", folder, "--feature", 3, "--to", out)
    assert load_vectors(out).sites.keys() == {Site(2, "mlp")}
    run("--from-sae", folder, "--feature", 3, "--use-at", "attn", "--to", out, "--overwrite")
    found = load_vectors(out)
    assert found.sites[Site(2, "attn")].steering_vector.tolist() == [10, 11, 12]
    assert "blocks.2.hook_resid_post" in capsys.readouterr().out
    run("--from-sae", folder, "--feature", 3, "--to", tmp_path / "v.gguf", "--model-hint", "llama")
    control = read_vectors(tmp_path / "v.gguf")
    assert not control.sites
    assert control.block_outputs[2].difference.tolist() == [10, 11, 12]
    for words in ((), ("--from-sae", folder), ("--feature", 3), (out, "--from-sae", folder, "--feature", 3)):
        with pytest.raises(Exception, match="give a file of vectors, or --from-sae DIR with --feature NUMBER"):
            run(*words)


def measured(model: LanguageModel, vectors: SteeringVectors) -> SteeringVectors:
    pairs = tuple((f"p{i}", "yes") for i in range(3)), tuple((f"p{i}", "no") for i in range(3))
    return measure_inputs(model, vectors, ContrastSet("mine", {"train": Contrast(*pairs)}, {}))


def test_what_it_lacks_is_measured_and_it_becomes_an_edit(tmp_path: Path) -> None:
    model = tiny_chat_model()
    width = model.sites[Site(1, "mlp")].weight.shape[0]
    decoder = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    vectors = read_sae_feature(sae(tmp_path / "sae", "blocks.1.hook_mlp_out", decoder=decoder), 1)
    assert isinstance(vectors, SteeringVectors)
    edit = convert(model, measured(model, vectors), Hyperparameters(None, 0.1, 0.5), allow_missing=True)
    direction = edit.sites[Site(1, "mlp")].output_direction
    assert torch.allclose(direction, decoder[1] / decoder[1].norm(), atol=1e-6)
    narrow = read_sae_feature(sae(tmp_path / "sae", "blocks.1.hook_mlp_out"), 1)
    assert isinstance(narrow, SteeringVectors)
    with pytest.raises(MismatchError, match=str(width)):
        measured(model, narrow)
