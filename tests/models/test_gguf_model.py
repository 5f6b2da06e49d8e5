"""A GGUF file as a model: its weights, its tokenizer, its template; and what can be wrong with one."""

import hashlib
import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from steer2edit.errors import DataError, ModelError
from steer2edit.models import checkpoint_directory, encode_prompts, load_model, load_skeleton
from steer2edit.models.gguf import cache_directory
from tiny_chat import chatml, tiny_tokenizer
from tiny_gguf import QUANT, tiny_llama, write_gguf


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("STEER2EDIT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def plain(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    path = tmp_path_factory.mktemp("files") / "tiny-f32.gguf"
    network = tiny_llama()
    write_gguf(path, network)
    return network, path


def test_the_weights_are_those_that_were_written(plain: tuple[torch.nn.Module, Path]) -> None:
    network, path = plain
    model = load_model(str(path), device="cpu")
    assert model.dtype == torch.float32  # nothing is rounded that was not quantised
    for name, weight in network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], weight), name
    assert model.name == str(path)
    assert model.describe()["gguf_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    skeleton = load_skeleton(str(path))
    assert skeleton.gguf_sha256 == model.gguf_sha256
    assert list(skeleton.sites) == list(model.sites)


def test_tokenizer_and_template_come_from_the_file(plain: tuple[torch.nn.Module, Path]) -> None:
    model = load_model(str(plain[1]), device="cpu")
    prompts = ["How do I bake bread?", "two\n\n  words"]
    expected = tiny_tokenizer()([chatml(prompt) for prompt in prompts], add_special_tokens=False)["input_ids"]
    assert [list(ids) for ids in encode_prompts(model, prompts)] == expected


@pytest.mark.parametrize(
    ("kind", "dtype"), [(QUANT.F16, torch.float16), (QUANT.Q8_0, torch.bfloat16), (QUANT.Q4_0, torch.bfloat16)]
)
def test_quantised_weights_are_what_the_gguf_package_makes_of_them(
    kind: QUANT, dtype: torch.dtype, cache: Path, tmp_path: Path
) -> None:
    network = tiny_llama()
    write_gguf(tmp_path / "tiny.gguf", network, kind)
    model = load_model(str(tmp_path / "tiny.gguf"), dtype="float32", device="cpu")
    for site in model.sites.values():
        weight = network.get_parameter(f"{site.name}.weight").detach().numpy()
        expected = torch.from_numpy(gguf.dequantize(gguf.quantize(weight, kind), kind)).to(dtype)
        assert torch.equal(site.weight.to(dtype), expected)
        assert (site.weight - torch.from_numpy(weight)).abs().max() < 0.2 * abs(weight).max()


def test_it_is_dequantised_once_for_each_content(
    plain: tuple[torch.nn.Module, Path], cache: Path, tmp_path: Path
) -> None:
    made = checkpoint_directory(str(plain[1]))
    before = made.stat().st_mtime_ns
    copy = tmp_path / "tiny-f32.gguf"
    copy.write_bytes(plain[1].read_bytes())
    assert checkpoint_directory(str(copy)) == made
    assert made.stat().st_mtime_ns == before
    other = bytearray(copy.read_bytes())
    other[-4:] = struct.pack("<f", 2.0)
    copy.write_bytes(other)
    os.utime(copy, ns=(0, 0))  # a clock's tick later
    assert checkpoint_directory(str(copy)) != made
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def damaged(path: Path, keep: int | None = None, **replaced: bytes) -> Path:
    content = path.read_bytes()[:keep]
    for old, new in replaced.items():
        content = content.replace(old.encode(), new)
    target = path.with_name("damaged.gguf")
    target.write_bytes(content)
    return target


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (
            -1,
            r"the tensor 'blk\.2\..*' reaches beyond the end of the file\): it is truncated or damaged\. Get it again",
        ),
        (200, "bytes are expected at"),
        (4, "bytes are expected at"),
    ],
)
def test_a_truncated_file(plain: tuple[torch.nn.Module, Path], cache: Path, keep: int, message: str) -> None:
    for reader in (load_model, load_skeleton, checkpoint_directory):
        with pytest.raises(ModelError, match=message):
            reader(str(damaged(plain[1], keep)))


def test_a_file_without_weights(cache: Path, tmp_path: Path) -> None:
    empty = tmp_path / "vocabulary.gguf"
    empty.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    with pytest.raises(ModelError, match=r"a GGUF file without a model's weights.*checkpoint in safetensors"):
        load_model(str(empty))


def test_an_adapter_is_refused_before_a_network_of_random_weights_is_made_for_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "lora.gguf", "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_tensor("blk.0.ffn_down.weight.lora_a", np.ones((1, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr("steer2edit.models.gguf.AutoModelForCausalLM", None)  # 7 billion weights without a config
    with pytest.raises(ModelError, match=r"lora.gguf' is .*says that it is 'adapter'.*the PEFT adapter or the edit"):
        checkpoint_directory(str(tmp_path / "lora.gguf"), weights_alone=True)


def test_an_architecture_that_transformers_does_not_read(cache: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "clip.gguf", tiny_llama(), architecture="clip")
    with pytest.raises(
        ModelError, match=r"architecture 'clip': transformers reads GGUF of .*llama.*Give the checkpoint in"
    ):
        load_model(str(tmp_path / "clip.gguf"))


def test_a_part_of_a_model(cache: Path, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a-00001-of-00002.gguf", "llama")
    writer.add_uint16("split.count", 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"one of 2 parts of a model.*llama-gguf-split --merge"):
        load_model(str(tmp_path / "a-00001-of-00002.gguf"))


def test_a_file_that_lacks_weights(plain: tuple[torch.nn.Module, Path], cache: Path) -> None:
    path = damaged(plain[1], **{"blk.1.ffn_down": b"blk.9.ffn_down"})
    with pytest.raises(ModelError, match=r"lacks 1 weights .*model\.layers\.1\.mlp\.down_proj\.weight"):
        load_model(str(path))


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows(cache: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "few.gguf", tiny_llama(rows=270))
    model = load_model(str(tmp_path / "few.gguf"), device="cpu")
    with pytest.raises(DataError, match=r"and the embedding of '.*few.gguf' has 270 rows"):
        encode_prompts(model, ["assistant"])


@pytest.mark.parametrize(
    "error", [SafetensorError("No space left on device (os error 28)"), OSError(28, "No space left")]
)
def test_no_space(
    plain: tuple[torch.nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setenv("STEER2EDIT_CACHE", str(tmp_path / "full"))
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(ModelError, match=r"No space left.*Set STEER2EDIT_CACHE to a directory that can be written and"):
        checkpoint_directory(str(plain[1]))
    assert list((tmp_path / "full").iterdir()) == []


def test_no_place(plain: tuple[torch.nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("STEER2EDIT_CACHE", str(tmp_path / "home" / "cache"))
    with pytest.raises(ModelError, match=r"home/cache/.*: Not a directory\. Set STEER2EDIT_CACHE to a directory"):
        checkpoint_directory(str(plain[1]))


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, "home/.cache/steer2edit"),
        ({"XDG_CACHE_HOME": ""}, "home/.cache/steer2edit"),
        ({"XDG_CACHE_HOME": "{}/xdg"}, "xdg/steer2edit"),
        ({"XDG_CACHE_HOME": "{}/xdg", "STEER2EDIT_CACHE": ""}, "xdg/steer2edit"),
        ({"STEER2EDIT_CACHE": "~/own"}, "home/own"),
    ],
)
def test_an_empty_variable_is_not_set(
    variables: dict[str, str], place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("STEER2EDIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert cache_directory() == tmp_path / place
