"""The edit written into files without loading the model: dtypes, side files, links, what is refused, what goes wrong.

That it equals the edit merged in memory, for every family, tests/test_families.py shows.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from apply_worker import FIELDS
from artifact_models import random_edit
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from families import tiny_network
from steer2edit.artifacts import CheckpointManifest, apply_to_files, open_base, read_manifest, verify_checkpoint
from steer2edit.core import ClassMeans, Site, SiteMeans, SteeringVectors, WeightEdit
from steer2edit.editing import convert, merged
from steer2edit.errors import ArtifactError, InvalidValueError, MismatchError, ModelError
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import LanguageModel, load_model, load_skeleton

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def saved(directory: Path, family: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0) -> LanguageModel:
    """A checkpoint in several shards, and the model as loading gives it."""
    network = tiny_network(family, seed).to(dtype)
    network.save_pretrained(directory, max_shard_size="30KB")
    return reloaded(directory, network, dtype)


def reloaded(directory: Path, network: torch.nn.Module, dtype: torch.dtype) -> LanguageModel:
    return LanguageModel(type(network).from_pretrained(directory, dtype=dtype), name=str(directory))


def load_all(directory: Path) -> dict[str, torch.Tensor]:
    return {k: t for path in directory.glob("model*.safetensors") for k, t in load_file(path).items()}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*raw)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss", "qwen3_moe"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fingerprint_of_the_files_is_the_loaded_models(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    model = saved(tmp_path / "base", family, dtype)
    assert open_base(str(tmp_path / "base")).fingerprint == model.fingerprint
    assert load_skeleton(str(tmp_path / "base")).sites.keys() == model.sites.keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss", "mixtral"])
def test_half_precision_is_rounded_once(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    model = saved(tmp_path / "base", family, dtype)
    edit = random_edit(model)
    apply_to_files(str(tmp_path / "base"), [(edit, 1.0)], tmp_path / "out")
    found = reloaded(tmp_path / "out", model.network, dtype).network.state_dict()
    with merged(model, edit):
        assert all(same(value, found[name]) for name, value in model.network.state_dict().items())


def test_several_edits_are_added_in_float32_and_rounded_once(tmp_path: Path) -> None:
    model = saved(tmp_path / "base", "llama", torch.bfloat16)
    one, two = random_edit(model, 1), random_edit(model, 2)
    two = WeightEdit({s: e for s, e in two.sites.items() if s.layer == 0}, two.metadata)
    manifest = apply_to_files(str(tmp_path / "base"), [(one, 0.5), (two, -2.0)], tmp_path / "out")
    before, after = load_all(tmp_path / "base"), load_all(tmp_path / "out")
    for site, e in one.sites.items():
        name = f"{model.sites[site].name}.weight"
        wide = before[name].float() + torch.outer(e.output_direction, 0.5 * e.row)
        if site in two.sites:
            wide = wide + torch.outer(two.sites[site].output_direction, -2.0 * two.sites[site].row)
        assert torch.equal(after[name], wide.bfloat16())
    assert [applied.strength for applied in manifest.edits] == [0.5, -2.0]
    assert manifest.edits[0].sha256 != manifest.edits[1].sha256


def test_a_part_of_the_experts_and_a_row_of_zeros(tmp_path: Path) -> None:
    """Experts that saw too few tokens have a zero row: their tensors stay untouched, in bits too."""
    model = saved(tmp_path / "base", "qwen3_moe")
    site = Site(1, "mlp")
    edit = random_edit(model)
    edit.sites[site].row[model.sites[site].projections[2].columns] = 0
    edit = WeightEdit({site: edit.sites[site]}, edit.metadata)
    manifest = apply_to_files(str(tmp_path / "base"), [(edit, 1.0)], tmp_path / "out")
    names = {f"model.layers.1.mlp.experts.{e}.down_proj.weight" for e in (0, 1, 3)}
    assert manifest.edited_tensors.keys() == names
    apply_to_files(str(tmp_path / "base"), [(edit, 1e-30)], tmp_path / "nothing")
    for path in (tmp_path / "base").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "nothing" / path.name).read_bytes()


def test_side_files_and_what_is_left_out(tmp_path: Path) -> None:
    model = saved(tmp_path / "base")
    kept = {"modeling_own.py": b"print()", "nested/vocab.json": b"{}", "preprocessor_config.json": b"{}", "x.txt": b"",
            "original/own.py": b"", "onnx/config.json": b"{}"}  # fmt: skip
    left_out = {"pytorch_model.bin", "consolidated.safetensors", "params.json", "model.gguf", ".gitattributes",
                "original/consolidated.00.pth", "original/params.json", "onnx/model.onnx_data",
                "openvino_model.xml", "openvino_model.bin", "flax_model.msgpack.index.json"}  # fmt: skip
    for name, content in {**kept, **dict.fromkeys(left_out, b"unedited")}.items():
        (tmp_path / "base" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "base" / name).write_bytes(content)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "base" / "linked").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "base" / "pipe.txt")  # reading it would wait forever
    manifest = apply_to_files(str(tmp_path / "base"), [(random_edit(model), 1.0)], tmp_path / "out")
    assert set(manifest.not_copied) == left_out | {"linked", "pipe.txt"}
    assert manifest == read_manifest(tmp_path / "out", CheckpointManifest)
    for name, content in kept.items():
        assert (tmp_path / "out" / name).read_bytes() == content
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    base = {p.relative_to(tmp_path / "base").as_posix() for p in (tmp_path / "base").rglob("*") if p.is_file()}
    assert found == base - left_out | {"steer2edit.json"}


def test_a_side_file_that_leads_out_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    model = saved(tmp_path / "base")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "base" / "vocab.json").symlink_to("../secret")
    with pytest.raises(ArtifactError, match=r"vocab.json is a link to .*secret, outside of its checkpoint"):
        apply_to_files(str(tmp_path / "base"), [(random_edit(model), 1.0)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_base_is_never_written_through_a_link(tmp_path: Path) -> None:
    """Also where every file of the base is a hard link to something else."""
    model = saved(tmp_path / "original")
    shutil.copytree(tmp_path / "original", tmp_path / "base", copy_function=os.link)
    before = {p.name: p.read_bytes() for p in (tmp_path / "original").iterdir()}
    apply_to_files(str(tmp_path / "base"), [(random_edit(model), 1.0)], tmp_path / "out")
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "original").iterdir()}
    assert all(path.stat().st_nlink == 1 for path in (tmp_path / "out").iterdir())


def planted_edit(model: LanguageModel, rho: tuple[float | None, float | None]) -> WeightEdit:
    """An edit by the paper's rules: its importances are those of the weights."""
    generator = torch.Generator().manual_seed(3)

    def means(size: int) -> ClassMeans:
        return ClassMeans(torch.randn(size, generator=generator), torch.randn(size, generator=generator))

    sites = {s: SiteMeans(means(p.shape[0]), means(p.shape[1])) for s, p in model.sites.items()}
    return convert(model, SteeringVectors(sites), Hyperparameters(*rho, 0.3))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_edit_already_applied(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    model = saved(tmp_path / "base", family, dtype)
    edit = planted_edit(model, (None, 0.3))
    base = open_base(str(tmp_path / "base"))
    apply_to_files(base, [(edit, 0.5)], tmp_path / "once")
    once = str(tmp_path / "once")
    with pytest.raises(MismatchError, match=r"already in .*: its steer2edit.json says so"):
        apply_to_files(once, [(edit, 1.0)], tmp_path / "twice")
    (tmp_path / "once" / "steer2edit.json").write_text("damaged")
    with pytest.raises(MismatchError, match=r"other weights, or already edited ones"):
        apply_to_files(once, [(edit, 1.0)], tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_edits_that_were_there_before_stay_on_record(tmp_path: Path) -> None:
    model = saved(tmp_path / "base")
    first, second = planted_edit(model, (0.3, None)), random_edit(model)
    apply_to_files(str(tmp_path / "base"), [(first, 0.5)], tmp_path / "once")
    manifest = apply_to_files(str(tmp_path / "once"), [(second, 0.1)], tmp_path / "twice", allow_mismatch=True)
    assert [(e.sha256, e.strength) for e in manifest.earlier_edits] == [(first.digest(), 0.5)]
    assert manifest == read_manifest(tmp_path / "twice", CheckpointManifest)
    with pytest.raises(MismatchError, match=r"its steer2edit\.json says so"):
        apply_to_files(str(tmp_path / "twice"), [(first, 1.0)], tmp_path / "out", allow_mismatch=True)


def test_a_projection_that_two_tensors_hold(tmp_path: Path) -> None:
    model = saved(tmp_path / "base")
    name = "layers.0.self_attn.o_proj.weight"
    tensors = load_all(tmp_path / "base")
    save_file({**tensors, name: torch.full_like(tensors[f"model.{name}"], 5.0)}, tmp_path / "base/model.safetensors")
    with pytest.raises(ModelError, match=r"hold model\.layers\.0\.self_attn\.o_proj twice"):
        apply_to_files(str(tmp_path / "base"), [(random_edit(model), 1.0)], tmp_path / "out")


def test_an_edit_for_another_base(tmp_path: Path) -> None:
    model, other = saved(tmp_path / "base"), saved(tmp_path / "other", seed=1)
    edit = planted_edit(model, (0.3, 0.3))
    with pytest.raises(
        MismatchError, match=f"fingerprint {model.fingerprint[:12]}.* has fingerprint {other.fingerprint[:12]}"
    ):
        apply_to_files(str(tmp_path / "other"), [(edit, 1.0)], tmp_path / "out")
    apply_to_files(str(tmp_path / "base"), [(planted_edit(model, (0.3, None)), 1.0)], tmp_path / "first")
    with pytest.raises(MismatchError, match=r"is itself an edited checkpoint.*steer2edit combine"):
        apply_to_files(str(tmp_path / "first"), [(random_edit(model), 1.0)], tmp_path / "out")
    smaller = saved(tmp_path / "moe", "qwen3_moe")
    with pytest.raises(MismatchError, match=r"has no such site|weight of shape"):
        apply_to_files(str(tmp_path / "base"), [(random_edit(smaller), 1.0)], tmp_path / "out", allow_mismatch=True)
    assert not (tmp_path / "out").exists()


def test_an_edit_made_on_an_edited_checkpoint_is_applied_to_it(tmp_path: Path) -> None:
    model = saved(tmp_path / "base")
    apply_to_files(str(tmp_path / "base"), [(random_edit(model), 0.1)], tmp_path / "first")
    first = reloaded(tmp_path / "first", model.network, torch.float32)
    manifest = apply_to_files(str(tmp_path / "first"), [(random_edit(first, 2), 0.1)], tmp_path / "second")
    assert manifest.base.fingerprint == first.fingerprint


def test_strengths_and_overflow(tmp_path: Path) -> None:
    model = saved(tmp_path / "base", dtype=torch.float16)
    edit = random_edit(model)
    with pytest.raises(InvalidValueError, match="strength must be a finite number, got inf"):
        apply_to_files(str(tmp_path / "base"), [(edit, float("inf"))], tmp_path / "out")
    with pytest.raises(InvalidValueError, match=r"must not be 0: that writes a copy of the base"):
        apply_to_files(str(tmp_path / "base"), [(edit, 0.0)], tmp_path / "out")
    with pytest.raises(InvalidValueError, match="at least one"):
        apply_to_files(str(tmp_path / "base"), [], tmp_path / "out")
    with pytest.raises(InvalidValueError, match="the edited weight is too large for F16"):
        apply_to_files(str(tmp_path / "base"), [(edit, 1e7)], tmp_path / "out")
    edit.sites[Site(0, "attn")].row[0] = float("nan")
    with pytest.raises(InvalidValueError, match="non-finite"):
        apply_to_files(str(tmp_path / "base"), [(edit, 1.0)], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def rewrite(directory: Path, change: dict[str, dict[str, torch.Tensor]]) -> None:
    """Replace tensors of a checkpoint by others, in one file."""
    tensors = load_all(directory)
    for name, others in change.items():
        del tensors[name]
        tensors |= others
    for path in directory.glob("model*"):
        path.unlink()
    save_file({name: t.contiguous() for name, t in tensors.items()}, directory / "model.safetensors", {"format": "pt"})


def quantise(directory: Path, parts: dict[str, torch.Tensor], config: dict[str, object], projection: str) -> None:
    name = f"model.layers.1.{projection}"
    rewrite(directory, {f"{name}.weight": {f"{name}.{part}": tensor for part, tensor in parts.items()}})
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))


INT = torch.int32
QUANTISED = {
    "gptq": (
        {"qweight": torch.ones(4, 32, dtype=INT), "scales": torch.ones(1, 32)},
        {"quant_method": "gptq", "bits": 4},
    ),
    "awq": (
        {"qweight": torch.ones(32, 4, dtype=INT), "qzeros": torch.ones(1, 4)},
        {"quant_method": "awq", "bits": 4},
    ),
    "bnb4": (
        {"weight": torch.ones(768, 1, dtype=torch.uint8), "weight.absmax": torch.ones(24)},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
    ),
    "bnb8": (
        {"weight": torch.ones(32, 32, dtype=torch.int8), "SCB": torch.ones(32)},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
    ),
    "fp8": (
        {"weight": torch.ones(32, 32).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(1, 1)},
        {"quant_method": "fp8"},
    ),
    "compressed-tensors": (
        {"weight_packed": torch.ones(32, 4, dtype=INT), "weight_scale": torch.ones(32, 1)},
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}},
    ),
    "scaled": ({"weight": torch.ones(32, 32), "weight_scale": torch.ones(1)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_projection_is_refused_and_its_plain_neighbours_are_edited(tmp_path: Path, kind: str) -> None:
    parts, config = QUANTISED[kind]
    model = saved(tmp_path / "base")
    edit = random_edit(model)
    quantise(tmp_path / "base", parts, config, "self_attn.o_proj")
    with pytest.raises(
        ArtifactError, match=r"model.layers.1.self_attn.o_proj.weight is quantised .*10 % .*4-bit.*adapter"
    ):
        apply_to_files(str(tmp_path / "base"), [(edit, 1.0)], tmp_path / "out", allow_mismatch=True)
    plain = WeightEdit({s: e for s, e in edit.sites.items() if s != Site(1, "attn")}, edit.metadata)
    with pytest.raises(MismatchError, match=r"some projections of .* are quantised"):
        apply_to_files(str(tmp_path / "base"), [(plain, 1.0)], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    manifest = apply_to_files(str(tmp_path / "base"), [(plain, 1.0)], tmp_path / "out", allow_mismatch=True)
    assert len(manifest.edited_tensors) == len(plain.sites)
    assert manifest.base.fingerprint is None
    before, after = load_all(tmp_path / "base"), load_all(tmp_path / "out")
    for part in parts:
        name = f"model.layers.1.self_attn.o_proj.{part}"
        assert same(before[name], after[name])


def test_fused_experts_in_mxfp4_are_refused(tmp_path: Path) -> None:
    model = saved(tmp_path / "base", "gpt_oss")
    edit = random_edit(model)
    name = "model.layers.1.mlp.experts.down_proj"
    blocks = {
        f"{name}_blocks": torch.ones(4, 32, 2, 16, dtype=torch.uint8),
        f"{name}_scales": torch.ones(4, 32, 2, dtype=torch.uint8),
    }
    rewrite(tmp_path / "base", {name: blocks})
    with pytest.raises(ArtifactError, match=r"down_proj is quantised .*down_proj_blocks.*34 % in MXFP4"):
        apply_to_files(str(tmp_path / "base"), [(edit, 1.0)], tmp_path / "out", allow_mismatch=True)


def test_a_projection_of_another_shape_or_none_at_all(tmp_path: Path) -> None:
    model = saved(tmp_path / "base")
    edit = random_edit(model)
    name = "model.layers.1.mlp.down_proj.weight"
    rewrite(tmp_path / "base", {name: {name: torch.ones(32, 47)}})
    with pytest.raises(ArtifactError, match=r"has shape \[32, 47\], which is not what config.json"):
        apply_to_files(str(tmp_path / "base"), [(edit, 1.0)], tmp_path / "out")
    rewrite(tmp_path / "base", {name: {}})
    with pytest.raises(ModelError, match="no tensor for 1 of its projections"):
        apply_to_files(str(tmp_path / "base"), [(edit, 1.0)], tmp_path / "out")


def test_a_base_that_changes_meanwhile_leaves_nothing(tmp_path: Path) -> None:
    model = saved(tmp_path / "base")
    base = open_base(str(tmp_path / "base"))
    shard = tmp_path / "base" / base.files.shards[-1]
    os.truncate(shard, shard.stat().st_size - 8)
    with pytest.raises(ArtifactError, match=r"truncated|ends"):
        apply_to_files(base, [(random_edit(model), 1.0)], tmp_path / "out", allow_mismatch=True)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A checkpoint of about 200 MB, most of it in two projections, and the factors of an edit of both."""
    directory = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=12288,
        num_hidden_layers=1,
        num_attention_heads=16,
        num_key_value_heads=1,
        vocab_size=4096,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        network = LlamaForCausalLM(config).bfloat16()
    network = network.to_empty(device="cpu")
    for parameter in network.parameters():
        parameter.data.fill_(0.125)
    network.save_pretrained(directory / "base")
    edit = random_edit(LanguageModel(network, name="large"))
    tensors = {f"{site}.{field}": getattr(e, field) for site, e in edit.sites.items() for field in FIELDS}
    save_file(tensors, directory / "edit.safetensors")
    return {"base": str(directory / "base"), "factors": str(directory / "edit.safetensors")}


@pytest.fixture(scope="module")
def worker() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).with_name("apply_worker.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


def answer(worker: subprocess.Popen[str], large: dict[str, str], out: Path) -> str:
    start(worker, large, out)
    return worker.stdout.readline()


def start(worker: subprocess.Popen[str], large: dict[str, str], out: Path) -> int:
    worker.stdin.write(json.dumps({**large, "out": str(out)}) + "\n")
    worker.stdin.flush()
    word, process = worker.stdout.readline().split()
    assert word == "started"
    return int(process)


@pytest.mark.slow
def test_memory_is_that_of_a_chunk(tmp_path: Path, worker: subprocess.Popen[str], large: dict[str, str]) -> None:
    size = sum(path.stat().st_size for path in Path(large["base"]).glob("*.safetensors")) / 2**20
    assert size > 170
    assert 0 < float(answer(worker, large, tmp_path / "out")) < 40  # MB: a chunk of 2²⁰ numbers in float32 is 4


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_under_the_target_name(
    tmp_path: Path, worker: subprocess.Popen[str], large: dict[str, str]
) -> None:
    process = start(worker, large, tmp_path / "out")
    while not list(tmp_path.glob(".out-*.partial/*.safetensors")) and not (tmp_path / "out").exists():
        pass
    os.kill(process, signal.SIGKILL)
    assert worker.stdout.readline() == "killed\n"
    assert not (tmp_path / "out").exists()
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]


def test_no_space_left(tmp_path: Path) -> None:
    """A limit on the size of files: writes fail as on a full disk, in the middle of the weights."""
    edit = random_edit(saved(tmp_path / "base"))
    assert max(path.stat().st_size for path in (tmp_path / "base").glob("*.safetensors")) > 20_000
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ArtifactError, match=r"cannot write .*File too large\. Nothing was left there; free some"):
            apply_to_files(str(tmp_path / "base"), [(edit, 1.0)], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.slow
def test_a_small_file_system(tmp_path: Path, worker: subprocess.Popen[str], large: dict[str, str]) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mounted)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root")
    try:
        found = answer(worker, large, mounted / "out")
        assert found.startswith("ArtifactError: cannot write")
        assert "No space left on device. Nothing was left there" in found
        assert list(mounted.iterdir()) == []
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_a_target_that_cannot_be_written(tmp_path: Path) -> None:
    model = saved(tmp_path / "base")
    edit = random_edit(model)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is not a directory"):
        apply_to_files(str(tmp_path / "base"), [(edit, 1.0)], tmp_path / "file" / "out")
    with pytest.raises(ArtifactError, match="exists already"):
        apply_to_files(str(tmp_path / "base"), [(edit, 1.0)], tmp_path / "base")
    with pytest.raises(ArtifactError, match="cannot write"):
        apply_to_files(str(tmp_path / "base"), [(edit, 1.0)], Path("/proc/steer2edit/out"))
    assert {path.name for path in tmp_path.iterdir()} == {"base", "file"}


@pytest.mark.slow
def test_smollm2_from_its_files(tmp_path: Path) -> None:
    model = load_model("smollm2", dtype="bfloat16", device="cpu")
    sites = {Site(3, "attn"), Site(20, "attn"), Site(20, "mlp")}
    edit = random_edit(model)
    edit = WeightEdit({s: e for s, e in edit.sites.items() if s in sites}, edit.metadata)
    base = open_base("smollm2")
    assert base.fingerprint == model.fingerprint
    apply_to_files(base, [(edit, 0.05)], tmp_path / "out")
    found = load_model(str(tmp_path / "out"), dtype="bfloat16", device="cpu").network.state_dict()
    with merged(model, edit, 0.05):
        assert all(same(value, found[name]) for name, value in model.network.state_dict().items())
    assert verify_checkpoint(base, [(edit, 0.05)], tmp_path / "out") == len(base.files.tensors)
