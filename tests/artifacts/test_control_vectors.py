"""GGUF control vectors and `.svec` files: exact bytes, round trips, and files that are not what they say."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from steer2edit.artifacts import load_vectors, read_vectors, save_block_vectors, save_vectors
from steer2edit.core import ClassMeans, Site, SiteMeans, SteeringVectors
from steer2edit.errors import ArtifactError, InvalidValueError, MismatchError

ODD = [1.0, -0.0, 1e-40, 1e37, 1 / 3]  # a subnormal, a negative zero, a large one


def blocks(*layers: int) -> SteeringVectors:
    return SteeringVectors.from_mapping({layer: torch.tensor(ODD) * (layer + 1) / 4 for layer in layers})


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


def require_same(read: SteeringVectors, written: SteeringVectors) -> None:
    assert list(read.block_outputs) == list(written.block_outputs)
    for layer in written.block_outputs:
        assert bits(read.block_outputs[layer].difference) == bits(written.block_outputs[layer].difference)


# --- GGUF ---


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_bytes(
    tensors: dict[str, list[float]],
    *,
    architecture: str = "controlvector",
    keys: bytes | None = None,
    key_count: int = 3,
    tensor_count: int | None = None,
    version: int = 3,
    shapes: dict[str, list[int]] | None = None,
    kinds: dict[str, int] | None = None,
    offsets: dict[str, int] | None = None,
) -> bytes:
    """A control vector file written out by hand from the GGUF specification."""
    if keys is None:
        keys = (
            text("controlvector.model_hint") + struct.pack("<I", 8) + text("llama")
            + text("controlvector.layer_count") + struct.pack("<II", 4, len(tensors))
        )  # fmt: skip
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors) if tensor_count is None else tensor_count, key_count)
    header += text("general.architecture") + struct.pack("<I", 8) + text(architecture) + keys
    data = b""
    for name, values in tensors.items():
        shape = (shapes or {}).get(name, [len(values)])
        header += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        header += struct.pack("<IQ", (kinds or {}).get(name, 0), (offsets or {}).get(name, len(data)))
        data += struct.pack(f"<{len(values)}f", *values)
        data += b"\0" * (-len(data) % 32)
    return header + b"\0" * (-len(header) % 32) + data


def test_bytes_of_a_control_vector(tmp_path: Path) -> None:
    written = SteeringVectors.from_mapping({2: torch.tensor([3.0, -4.0]), 1: torch.tensor([1.0, 2.0])})
    assert save_block_vectors(written, tmp_path / "v.gguf", model_hint="llama") == []
    assert (tmp_path / "v.gguf").read_bytes() == gguf_bytes({"direction.1": [1.0, 2.0], "direction.2": [3.0, -4.0]})


def test_the_bytes_are_those_that_repeng_writes(tmp_path: Path) -> None:
    """Its published export: one string, one u32, and the directions as they are in its dictionary."""
    written = blocks(1, 2, 7)
    writer = gguf.GGUFWriter(tmp_path / "repeng.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", 3)
    for layer in (1, 2, 7):
        writer.add_tensor(f"direction.{layer}", written.block_outputs[layer].difference.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_block_vectors(written, tmp_path / "ours.gguf", model_hint="mistral")
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "repeng.gguf").read_bytes()


def test_the_reader_of_the_gguf_package_finds_what_llama_cpp_asks_for(tmp_path: Path) -> None:
    save_block_vectors(blocks(1, 3), tmp_path / "v.gguf", model_hint="llama")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert reader.get_field("controlvector.layer_count").contents() == 2
    assert [t.name for t in reader.tensors] == ["direction.1", "direction.3"]
    for tensor, layer in zip(reader.tensors, (1, 3), strict=True):
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert tensor.data.shape == (len(ODD),)
        assert np.array(tensor.data).tobytes() == bits(blocks(layer).block_outputs[layer].difference)


@pytest.mark.parametrize("name", ["v.gguf", "v.svec"])
def test_round_trip_bit_for_bit(tmp_path: Path, name: str) -> None:
    save_block_vectors(blocks(1, 30), tmp_path / name, model_hint="qwen2")
    read = read_vectors(tmp_path / name)
    require_same(read, blocks(1, 30))
    assert read.metadata["model_hint"] == "qwen2"
    assert read.metadata["file"] == name
    assert read.metadata["origin"] == "imported"
    save_block_vectors(read, tmp_path / f"again-{name}")  # the model's type is known from the file
    assert (tmp_path / f"again-{name}").read_bytes() == (tmp_path / name).read_bytes()


def test_layer_0_is_left_out_of_a_control_vector_and_said(tmp_path: Path) -> None:
    assert save_block_vectors(blocks(0, 1), tmp_path / "v.gguf", model_hint="llama") == [0]
    require_same(read_vectors(tmp_path / "v.gguf"), blocks(1))
    with pytest.raises(ArtifactError, match=r"layer 0 only.*no direction\.0"):
        save_block_vectors(blocks(0), tmp_path / "w.gguf", model_hint="llama")
    assert not (tmp_path / "w.gguf").exists()
    assert save_block_vectors(blocks(0, 1), tmp_path / "v.svec", model_hint="llama") == []
    require_same(read_vectors(tmp_path / "v.svec"), blocks(0, 1))


def test_writing_is_refused_without_a_model_type_an_ending_or_a_free_name(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="--model-hint"):
        save_block_vectors(blocks(1), tmp_path / "v.gguf")
    with pytest.raises(ArtifactError, match=r"\.gguf or \.svec, got 'v\.bin'"):
        save_block_vectors(blocks(1), tmp_path / "v.bin", model_hint="llama")
    (tmp_path / "v.svec").write_text("precious")
    with pytest.raises(ArtifactError, match="exists already"):
        save_block_vectors(blocks(1), tmp_path / "v.svec", model_hint="llama")
    assert (tmp_path / "v.svec").read_text() == "precious"
    save_block_vectors(blocks(1), tmp_path / "v.svec", model_hint="llama", overwrite=True)
    require_same(read_vectors(tmp_path / "v.svec"), blocks(1))


def test_the_model_type_of_our_own_vectors_is_known(tmp_path: Path) -> None:
    save_block_vectors(replace(blocks(1), metadata={"model": {"model_type": "gemma2"}}), tmp_path / "v.svec")
    assert json.loads((tmp_path / "v.svec").read_text())["model_type"] == "gemma2"


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


GOOD: dict[str, list[float]] = {"direction.1": [1.0, 2.0], "direction.2": [3.0, 4.0]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gguf_bytes({"direction.0": [1.0], "direction.1": [2.0]}), r"direction\.0.*llama\.cpp refuses"),
        (gguf_bytes({"direction.01": [1.0]}), r"'direction\.01'"),
        (gguf_bytes({"direction.-1": [1.0]}), r"'direction\.-1'"),
        (gguf_bytes({"direction.one": [1.0]}), r"'direction\.one'"),
        (gguf_bytes({"output.weight": [1.0]}), r"'output\.weight'"),
        (gguf_bytes({}), "at least one layer"),
        (gguf_bytes({"direction.1": [1.0, 2.0], "direction.2": [1.0]}), "has 1 entries, but another has 2"),
        (gguf_bytes(GOOD | {"direction.3": [float("nan"), 1.0]}), "layer 3: .* 1 non-finite"),
        (gguf_bytes(GOOD, shapes={"direction.1": [2, 1]}), "must be one row of F32"),
        (gguf_bytes(GOOD, shapes={"direction.1": []}), "must be one row of F32"),
        (gguf_bytes(GOOD, shapes={"direction.1": [0]}), "must be one row of F32"),
        (gguf_bytes(GOOD, shapes={"direction.1": [1] * 5}), "5 axes"),
        (gguf_bytes(GOOD, kinds={"direction.2": 1}), "must be one row of F32, but is of type 1"),
        (gguf_bytes(GOOD, shapes={"direction.2": [2**61]}), "beyond the end"),
        (gguf_bytes(GOOD, offsets={"direction.2": 2**40}), "beyond the end"),
        (gguf_bytes(GOOD, architecture="llama"), "architecture is 'llama'"),
        (gguf_bytes(GOOD, version=1), "version 1"),
        (gguf_bytes(GOOD, version=3 << 24), "little-endian"),
        (gguf_bytes(GOOD, tensor_count=2**60), "are expected at"),
        (gguf_bytes(GOOD, key_count=2**60), "are expected at|unknown type|utf-8"),
        (gguf_bytes(GOOD, keys=key("a", 9, struct.pack("<IQ", 0, 2**60)), key_count=2), "bytes are expected"),
        (gguf_bytes(GOOD, keys=key("a", 9, struct.pack("<IQ", 8, 2**60)), key_count=2), "bytes are expected|utf-8"),
        (gguf_bytes(GOOD, keys=key("a", 9, struct.pack("<IQ", 9, 1)), key_count=2), "a list of the type 9"),
        (gguf_bytes(GOOD, keys=key("a", 8, struct.pack("<Q", 2**63)), key_count=2), "bytes are expected"),
        (gguf_bytes(GOOD, keys=key("a", 99, b""), key_count=2), "unknown type 99"),
        (gguf_bytes(GOOD, keys=key("a", 7, b"\1") * 2, key_count=3), "the key 'a' is there twice"),
        (gguf_bytes(GOOD, keys=key("general.alignment", 4, struct.pack("<I", 3)), key_count=2), "no power of two"),
        (gguf_bytes(GOOD, keys=key("general.alignment", 4, struct.pack("<I", 0)), key_count=2), "no power of two"),
        (gguf_bytes(GOOD, keys=key("controlvector.layer_count", 8, text("two")), key_count=2), "whole number"),
        (gguf_bytes(GOOD, keys=key("controlvector.model_hint", 4, b"\1\0\0\0"), key_count=2), "must be text"),
        (b"GGUF", "truncated"),
        (b"", "truncated"),
        (b"PK\3\4" * 20, "does not begin with GGUF"),
    ],
)
def test_hostile_gguf_is_one_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "v.gguf").write_bytes(content)
    with pytest.raises(ArtifactError, match=message) as raised:
        read_vectors(tmp_path / "v.gguf")
    assert "v.gguf" in str(raised.value)


def test_every_truncation_of_gguf_is_refused(tmp_path: Path) -> None:
    whole = gguf_bytes(GOOD)[: -32 + 8]  # without the padding after the last tensor
    (tmp_path / "v.gguf").write_bytes(whole)
    assert read_vectors(tmp_path / "v.gguf").block_outputs[2].difference.tolist() == [3, 4]
    for length in range(len(whole)):
        (tmp_path / "v.gguf").write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="truncated, damaged, or of another format"):
            read_vectors(tmp_path / "v.gguf")


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    content = gguf_bytes({"direction.1": [1.0], "direction.2": [2.0]}).replace(b"direction.2", b"direction.1")
    (tmp_path / "v.gguf").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"'direction\.1' is there twice"):
        read_vectors(tmp_path / "v.gguf")


def test_what_neither_repeng_nor_llama_cpp_needs_may_be_missing(tmp_path: Path) -> None:
    """The count of layers is read by neither; llama.cpp's generator writes it as i32; other keys are not ours."""
    (tmp_path / "v.gguf").write_bytes(gguf_bytes(GOOD, keys=b"", key_count=1))
    read = read_vectors(tmp_path / "v.gguf")
    assert read.block_outputs[1].difference.tolist() == [1, 2]
    assert (read.metadata["model_hint"], read.metadata["layer_count"]) == (None, None)
    keys = key("controlvector.layer_count", 5, struct.pack("<i", 31))
    keys += key("a", 9, struct.pack("<IQ3f", 6, 3, 1, 2, 3)) + key("b", 9, struct.pack("<IQ", 8, 1) + text("x"))
    keys += key("general.alignment", 4, struct.pack("<I", 64))
    unaligned = gguf_bytes({"direction.1": [5.0]}, keys=keys, key_count=5)
    header = unaligned[: unaligned.index(b"direction.1") + 11 + 4 + 8 + 4 + 8]
    (tmp_path / "w.gguf").write_bytes(header + b"\0" * (-len(header) % 64) + struct.pack("<f", 5))
    read = read_vectors(tmp_path / "w.gguf")
    assert read.block_outputs[1].difference.tolist() == [5]
    assert read.metadata["layer_count"] == 31


# --- .svec ---


def test_bytes_of_a_svec(tmp_path: Path) -> None:
    written = SteeringVectors.from_mapping({1: torch.tensor([1.0, -0.5]), 0: torch.tensor([0.1, 2.0])})
    save_block_vectors(written, tmp_path / "v.svec", model_hint="llama")
    assert json.loads((tmp_path / "v.svec").read_text()) == {
        "model_type": "llama",
        "directions": {"0": [0.10000000149011612, 2.0], "1": [1.0, -0.5]},  # 0.1 rounded to float32
        "explained_variances": {},
    }


def svec(**changes: Any) -> dict[str, Any]:
    return {"model_type": "llama", "directions": {"3": [1, 0.5]}, "explained_variances": {"3": 0.25}} | changes


def test_what_cast_and_aisteer360_write_is_read(tmp_path: Path) -> None:
    (tmp_path / "v.svec").write_text(json.dumps(svec()))
    read = read_vectors(tmp_path / "v.svec")
    assert read.block_outputs[3].difference.tolist() == [1, 0.5]
    assert read.metadata["explained_variances"] == {"3": 0.25}
    save_block_vectors(read, tmp_path / "w.svec")
    assert json.loads((tmp_path / "w.svec").read_text()) == svec()
    one_row = {"model_type": "llama", "directions": {"0": [[1.0, 2.0]]}}  # AISteer360: rows, and no variances
    (tmp_path / "v.svec").write_text(json.dumps(one_row))
    assert read_vectors(tmp_path / "v.svec").block_outputs[0].difference.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "truncated"),
        ("[1]", "must hold a JSON object"),
        ("{" * 100_000, "sound JSON"),
        ('{"directions": {"3": [1], "3": [2]}}', "'3' is there twice"),
        (svec(model_type=3), "model_type: Input should be a valid string"),
        (svec(directions=[[1.0]]), "directions: Input should be a valid dictionary"),
        ({"model_type": "llama"}, "directions: Field required"),
        (svec(directions={}), "at least one layer"),
        (svec(directions={"-1": [1.0]}), r"directions\.-1.*counted from 0"),
        (svec(directions={"03": [1.0]}), r"directions\.03.*counted from 0"),
        (svec(directions={"x": [1.0]}), r"directions\.x.*counted from 0"),
        (svec(directions={"3": "abc"}), r"directions\.3: Input should be a valid list"),
        (svec(directions={"3": [1.0, "2"]}), r"directions\.3\.1: Input should be a valid number"),
        (svec(directions={"3": [True]}), r"directions\.3\.0: Input should be a valid number"),
        (svec(directions={"3": []}), "layer 3: a direction is a vector"),
        (svec(directions={"3": [[1.0], [2.0]]}), r"directions\.3: .*2 rows"),
        (svec(directions={"3": [[[1.0]]]}), r"directions\.3\.0: Input should be a valid number"),
        (svec(directions={"3": [1.0], "4": [1.0, 2.0]}), "has 2 entries, but another has 1"),
        (svec(directions={"3": [float("nan")]}), "NaN is not a finite number"),
        (svec(directions={"3": [float("inf")]}), "Infinity is not a finite number"),
        (svec(directions={"3": [10**400]}), r"directions\.3\.0: Input should be"),
        (svec(directions={"3": [1e300]}), "layer 3: .* non-finite"),  # no float32 is that large
        (svec(num_heads=8), "by attention head"),
        (svec(explained_variances={"3": "much"}), r"explained_variances\.3: Input should be a valid number"),
        (svec(explained_variances=[1]), "explained_variances: Input should be a valid dictionary"),
    ],
)
def test_hostile_svec_is_one_clear_error(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "v.svec").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ArtifactError, match=message) as raised:
        read_vectors(tmp_path / "v.svec")
    assert "v.svec" in str(raised.value)


# --- never silently converted ---


def measured() -> SteeringVectors:
    sites = {Site(1, "mlp"): SiteMeans(ClassMeans(torch.ones(5), torch.zeros(5)))}
    means = ClassMeans(torch.tensor(ODD), torch.tensor([0.5, 0.0, 0.0, 0.0, 1 / 3]))
    return SteeringVectors(sites, {"model": {"model_type": "llama"}}, block_outputs={1: means, 0: means})


@pytest.mark.parametrize("name", ["v.gguf", "v.svec"])
def test_block_directions_become_site_vectors_only_when_told_where(tmp_path: Path, name: str) -> None:
    save_block_vectors(blocks(1, 2), tmp_path / name, model_hint="llama")
    with pytest.raises(ArtifactError, match=r"per block output.*not converted silently.*--use-at"):
        load_vectors(tmp_path / name)
    loaded = load_vectors(tmp_path / name, use_at="mlp")
    assert list(map(str, loaded.sites)) == ["L1.mlp", "L2.mlp"]
    assert loaded.metadata["block_outputs_used_at"] == "mlp"
    save_vectors(loaded, tmp_path / "v.safetensors")
    require_same(load_vectors(tmp_path / "v.safetensors"), blocks(1, 2))  # nothing is lost on the way
    with pytest.raises(ArtifactError, match="leave out --use-at"):
        load_vectors(tmp_path / "v.safetensors", use_at="mlp")


def test_vectors_without_block_outputs_cannot_be_written_as_such(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"another quantity.*--block-outputs"):
        save_block_vectors(load_vectors({"L1.mlp": torch.ones(2)}), tmp_path / "v.svec")


def test_block_outputs_in_our_own_file(tmp_path: Path) -> None:
    save_vectors(measured(), tmp_path / "v.safetensors")
    from safetensors.torch import load_file

    assert set(load_file(tmp_path / "v.safetensors")) == {
        "L1.mlp.output_positive", "L1.mlp.output_negative", "B0.output_positive", "B0.output_negative",
        "B1.output_positive", "B1.output_negative",
    }  # fmt: skip
    read = load_vectors(tmp_path / "v.safetensors")
    assert list(read.block_outputs) == [0, 1]
    for layer, expected in measured().block_outputs.items():
        assert bits(read.block_outputs[layer].positive) == bits(expected.positive)
        assert bits(read.block_outputs[layer].negative) == bits(expected.negative)
    save_vectors(read, tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes() == (tmp_path / "v.safetensors").read_bytes()
    save_block_vectors(read, tmp_path / "v.gguf")
    written = read_vectors(tmp_path / "v.gguf").block_outputs[1].difference
    assert bits(written) == bits(measured().block_outputs[1].difference)


def test_plain_files_have_v_and_the_input_mean(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    site = SiteMeans(
        ClassMeans(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])),
        ClassMeans(torch.tensor([4.0]), torch.tensor([2.0])),
    )
    layers = {7: ClassMeans(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]))}
    vectors = SteeringVectors({Site(0, "attn"): site}, block_outputs=layers)
    save_vectors(vectors, tmp_path / "v.safetensors", plain=True)
    found = {name: tensor.tolist() for name, tensor in load_file(tmp_path / "v.safetensors").items()}
    assert found == {"L0.attn": [2, -1], "L0.attn.input_mean": [3], "B7": [1, -1]}
    read = load_vectors(tmp_path / "v.safetensors")
    assert read.sites[Site(0, "attn")].steering_vector.tolist() == [2, -1]
    assert read.block_outputs[7].difference.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"B1.output_positive": torch.ones(2)}, "B1 has only output_positive: it needs"),
        ({"B1": torch.ones(2), "B1.output_negative": torch.ones(2)}, "B1 has only"),
        ({"B1.input_positive": torch.ones(2)}, "'B1.input_positive' is not the name"),
        ({"B01": torch.ones(2)}, "'B01' is not the name"),
        ({"B1": torch.ones(2, 2)}, "B1 must be a vector"),
        ({"B1": torch.tensor([float("nan")])}, "layer 1: .* non-finite"),
        ({"B1.output_positive": torch.ones(2), "B1.output_negative": torch.ones(3)}, "2 entries and the negative 3"),
    ],
)
def test_damaged_block_outputs(tensors: dict, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        load_vectors({"L0.mlp": torch.ones(2), **tensors})
