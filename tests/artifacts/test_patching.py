"""Rows of a stored tensor with the edit: bit for bit `merged_weight` of the whole, in every layout."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from steer2edit.artifacts.checkpoints.base import Addition, Plan, StoredProjection
from steer2edit.artifacts.checkpoints.files import CheckpointFiles, open_tensors
from steer2edit.artifacts.checkpoints.patching import write_files
from steer2edit.core import Site, SiteEdit
from steer2edit.editing import merged_weight
from steer2edit.errors import ArtifactError

D, M, EXPERTS = 12, 20, 3
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def random_factors(seed: int) -> SiteEdit:
    generator = torch.Generator().manual_seed(seed)
    u, a = torch.randn(D, generator=generator), torch.randn(M, generator=generator)
    return SiteEdit(u / u.norm(), a, torch.ones(M), torch.zeros(M))


def copied(source: Path, target: Path, plan: Plan | None = None) -> dict[str, str]:
    """The hashes of edited tensors."""
    files = CheckpointFiles(source.parent, (source.name,), open_tensors(source))
    return write_files(files, [Path(source.name)], target, plan or {})


@pytest.fixture(params=[1, 64, 2**18], ids=lambda count: f"chunk={count}")
def _chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steer2edit.artifacts.checkpoints.files.CHUNK", request.param)


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["[d,m]", "[m,d]"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_equals_merged_weight(tmp_path: Path, dtype: torch.dtype, transposed: bool, fused: bool) -> None:
    torch.manual_seed(1)
    weights = torch.randn(EXPERTS, D, M).to(dtype)
    stored = weights.transpose(1, 2).contiguous() if transposed else weights
    before = {"odd": torch.ones(3, dtype=torch.uint8), "w": stored if fused else stored[0], "z": torch.randn(5)}
    save_file({name: tensor.clone() for name, tensor in before.items()}, tmp_path / "x", {"format": "pt"})
    tensor = open_tensors(tmp_path / "x")["w"]
    experts = {0: random_factors(0), 2: random_factors(2)} if fused else {0: random_factors(0)}
    located = {e: StoredProjection("w", tensor, e if fused else None, transposed, (D, M)) for e in experts}
    additions = [Addition(Site(0, "mlp"), located[e], edit, 0.3) for e, edit in experts.items()]
    hashes = copied(tmp_path / "x", tmp_path / "out", {tensor: additions})
    after = load_file(tmp_path / "out" / "x")
    found = after["w"] if fused else after["w"][None]
    for e in range(EXPERTS if fused else 1):
        own = found[e].T if transposed else found[e]
        expected = merged_weight(weights[e], experts[e], 0.3) if e in experts else weights[e]
        assert own.dtype == dtype
        assert torch.equal(own, expected)
    raw_before, raw_after = (tmp_path / "x").read_bytes(), (tmp_path / "out" / "x").read_bytes()
    assert raw_before[: tensor.begin] == raw_after[: tensor.begin]
    assert raw_before[tensor.end :] == raw_after[tensor.end :]
    assert hashes == {"w": hashlib.sha256(raw_after[tensor.begin : tensor.end]).hexdigest()}
    assert len(raw_after) == len(raw_before)


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize("transposed", [False, True])
def test_sampled_rows_are_those_of_the_weight(tmp_path: Path, transposed: bool) -> None:
    weight = torch.randn(70, M)
    save_file({"w": weight.T.contiguous() if transposed else weight}, tmp_path / "x")
    located = StoredProjection("w", open_tensors(tmp_path / "x")["w"], None, transposed, (70, M))
    assert torch.equal(located.sampled_rows(), weight[::4])


@pytest.mark.parametrize("stored", [(D, M + 1), (M, D), (EXPERTS, D, M), (D * M,), ()], ids=str)
def test_a_tensor_of_another_shape(tmp_path: Path, stored: tuple[int, ...]) -> None:
    save_file({"w": torch.zeros(stored)}, tmp_path / "x")
    with pytest.raises(ArtifactError, match=r"which is not what config.json says of w: \[12, 20\]"):
        StoredProjection("w", open_tensors(tmp_path / "x")["w"], None, False, (D, M))


def test_an_expert_that_is_not_there(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(EXPERTS, D, M)}, tmp_path / "x")
    with pytest.raises(ArtifactError, match="has shape"):
        StoredProjection("w", open_tensors(tmp_path / "x")["w"], EXPERTS, False, (D, M))


def test_an_existing_file_is_not_written(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(D, M)}, tmp_path / "x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").symlink_to(tmp_path / "x")
    with pytest.raises(FileExistsError):
        copied(tmp_path / "x", tmp_path / "out")
