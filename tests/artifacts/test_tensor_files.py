from pathlib import Path

import torch
from safetensors.torch import load_file

from steer2edit.artifacts.tensors import file_sha256, read_tensors, same_bits, write_tensors


def test_same_bits() -> None:
    values = torch.tensor([1.0, float("nan"), -0.0, 4.0])
    assert same_bits(values, values.clone())
    assert not same_bits(values, torch.tensor([1.0, float("nan"), 0.0, 4.0]))
    assert not same_bits(values, values[:3])
    assert not same_bits(values, values.double())
    assert not same_bits(values[None], values)
    assert same_bits(torch.tensor(1.0), torch.tensor(1.0))  # no axis
    assert not same_bits(torch.tensor(1.0), torch.tensor(2.0))
    longer = torch.cat([torch.zeros(1), values])
    assert same_bits(longer[1:], values)  # starts in the middle of eight bytes
    assert not same_bits(longer[:4], values)
    transposed = torch.arange(6.0).view(2, 3).T
    assert same_bits(transposed, transposed.contiguous())


def test_written_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    shared = torch.arange(8.0).view(2, 4)
    tensors = {"b": shared[:, 1], "a": shared[0], "c": torch.zeros(0), "d": torch.tensor(3.0).half()}
    write_tensors(tensors, tmp_path / "t.safetensors", {"zeta": "☃", "alpha": "1"})
    found = load_file(tmp_path / "t.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "a": [0, 1, 2, 3], "b": [1, 5], "c": [], "d": 3.0,
    }  # fmt: skip
    assert found["d"].dtype == torch.float16
    assert read_tensors(tmp_path / "t.safetensors", "tensors")[1] == {"zeta": "☃", "alpha": "1"}
    write_tensors(tensors, tmp_path / "again.safetensors", {"alpha": "1", "zeta": "☃"})
    assert file_sha256(tmp_path / "again.safetensors") == file_sha256(tmp_path / "t.safetensors")
