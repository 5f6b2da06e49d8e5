import json
import math
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from steer2edit.artifacts import load_vectors, save_vectors
from steer2edit.core import ClassMeans, Site, SiteEffects, SiteMeans, SteeringVectors
from steer2edit.errors import ArtifactError, InvalidValueError

ATTN, MLP = Site(0, "attn"), Site(11, "mlp")


def means(*values: float) -> ClassMeans:
    return ClassMeans(torch.tensor(values), -2 * torch.tensor(values))


def vectors() -> SteeringVectors:
    sites = {MLP: SiteMeans(means(1.0, 2.0)), ATTN: SiteMeans(means(3.0, -0.0), means(4.0, 5.0, 1e-40))}
    return SteeringVectors(
        sites, {"model": {"name": "tiny", "fingerprint": "f"}, "counts": [3, 4]}, {"L0.attn": {"x": 0.1}}
    )


def require_equal(read: SteeringVectors, written: SteeringVectors) -> None:
    assert list(read.sites) == list(written.sites)
    for site, expected in written.sites.items():
        for name in ("output", "input"):
            mine, theirs = getattr(read.sites[site], name), getattr(expected, name)
            assert (mine is None) == (theirs is None)
            if mine is not None:
                assert mine.positive.numpy().tobytes() == theirs.positive.numpy().tobytes()
                assert mine.negative.numpy().tobytes() == theirs.negative.numpy().tobytes()
    assert read.metadata == written.metadata
    assert read.diagnosis == written.diagnosis


def test_bytes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    save_vectors(SteeringVectors({MLP: SiteMeans(means(1.0, 2.0))}, {"a": "é"}), path)
    header = (
        '{"__metadata__":{"diagnosis":"null","kind":"steering-vectors","metadata":"{\\"a\\": \\"é\\"}",'
        '"schema_version":"1"},'
        '"L11.mlp.output_negative":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"L11.mlp.output_positive":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    assert path.read_bytes() == struct.pack("<Q", len(header)) + header + struct.pack("<4f", -2, -4, 1, 2)


def test_keys(tmp_path: Path) -> None:
    save_vectors(vectors(), tmp_path / "v.safetensors")
    with safe_open(tmp_path / "v.safetensors", framework="pt") as file:
        assert set(file.keys()) == {
            "L0.attn.output_positive", "L0.attn.output_negative", "L0.attn.input_positive", "L0.attn.input_negative",
            "L11.mlp.output_positive", "L11.mlp.output_negative",
        }  # fmt: skip
        assert set(file.metadata()) == {"schema_version", "kind", "metadata", "diagnosis"}
        assert json.loads(file.metadata()["metadata"]) == vectors().metadata
        assert file.get_tensor("L0.attn.input_positive").dtype == torch.float32


def test_round_trip_bit_for_bit(tmp_path: Path) -> None:
    save_vectors(vectors(), tmp_path / "v.safetensors")
    require_equal(load_vectors(tmp_path / "v.safetensors"), vectors())
    save_vectors(load_vectors(tmp_path / "v.safetensors"), tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").read_bytes() == (tmp_path / "v.safetensors").read_bytes()


def test_how_experts_were_used_is_kept(tmp_path: Path) -> None:
    tokens = means(7.0, 0.0, 9.0)
    written = SteeringVectors({MLP: SiteMeans(means(1.0, 2.0), means(3.0, 4.0, 5.0), tokens)})
    save_vectors(written, tmp_path / "v.safetensors")
    with safe_open(tmp_path / "v.safetensors", framework="pt") as file:
        assert {name for name in file.keys() if "put" not in name} == {  # noqa: SIM118
            "L11.mlp.tokens_positive", "L11.mlp.tokens_negative",
        }  # fmt: skip
    read = load_vectors(tmp_path / "v.safetensors").sites[MLP].tokens
    assert read is not None
    assert (read.positive.tolist(), read.negative.tolist()) == ([7, 0, 9], [-14, 0, -18])
    for name, tensor, message in (
        ("L11.mlp.tokens_negative", None, "has only tokens_positive"),
        ("L11.mlp.tokens_negative", torch.ones(2), "positive mean has 3 entries and the negative 2"),
        ("L11.mlp.tokens_positive", torch.tensor([1.0, float("nan"), 1.0]), "tokens mean has 1 non-finite"),
    ):
        save_vectors(written, tmp_path / "v.safetensors", overwrite=True)
        rewrite(tmp_path / "v.safetensors", **{name: tensor})
        with pytest.raises(ArtifactError, match=message):
            load_vectors(tmp_path / "v.safetensors")


def test_shared_memory_other_dtypes_and_strides(tmp_path: Path) -> None:
    mean = torch.arange(6, dtype=torch.bfloat16).view(3, 2)[:, 0]  # [0, 2, 4], strided
    save_vectors(SteeringVectors({ATTN: SiteMeans(ClassMeans(mean, mean))}), tmp_path / "v.safetensors")
    read = load_vectors(tmp_path / "v.safetensors").sites[ATTN].output
    assert read.positive.tolist() == read.negative.tolist() == [0, 2, 4]
    assert read.positive.dtype == torch.float32


def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    path.write_text("precious")
    with pytest.raises(ArtifactError, match="exists already"):
        save_vectors(vectors(), path)
    assert path.read_text() == "precious"
    save_vectors(vectors(), path, overwrite=True)
    require_equal(load_vectors(path), vectors())


def test_name_and_metadata_are_checked_before_writing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"name it v\.safetensors"):
        save_vectors(vectors(), tmp_path / "v.pt")
    for bad in (float("nan"), torch.zeros(1), {1, 2}):
        with pytest.raises(InvalidValueError, match="metadata cannot be written as JSON"):
            save_vectors(SteeringVectors(vectors().sites, {"bad": bad}), tmp_path / "v.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("steer2edit.artifacts.tensors.read_tensors", interrupted)  # after the bytes are written
    with pytest.raises(KeyboardInterrupt):
        save_vectors(vectors(), tmp_path / "v.safetensors")
    assert list(tmp_path.iterdir()) == []


# --- what others made ---


def official(**dropped: object) -> dict:
    names = {"attn": "model.layers[0].self_attn.o_proj", "mlp": "model.layers[11].mlp.down_proj"}

    def group(attn: list[float], mlp: list[float]) -> dict:
        return {names["attn"]: torch.tensor(attn).bfloat16(), names["mlp"]: torch.tensor(mlp).bfloat16()}

    return {
        "pre": {
            "pos_mean": group([1, 2, 3], [4]),
            "neg_mean": group([3, 2, 1], [0]),
            "direction": group([-2, 0, 2], [4]),
        },
        "post": {
            "pos_mean": group([1, 0], [2, 0]),
            "neg_mean": group([0, 1], [0, 2]),
            "direction": group([1, -1], [2, -2]),
        },
    }


def test_official_directions(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "refusal_dirs.pt")
    read = load_vectors(tmp_path / "refusal_dirs.pt")
    assert list(read.sites) == [ATTN, MLP]
    assert read.sites[ATTN].steering_vector.tolist() == [1, -1]  # (1, 0) − (0, 1)
    assert read.sites[ATTN].input is not None
    assert read.sites[ATTN].input.midpoint.tolist() == [2, 2, 2]  # ½ ((1, 2, 3) + (3, 2, 1))
    assert read.sites[MLP].input.positive.tolist() == [4]
    assert read.sites[MLP].output.negative.tolist() == [0, 2]
    assert read.sites[MLP].output.negative.dtype == torch.float32
    assert read.metadata == {
        "origin": "imported",
        "format": "official Steer2Edit directions",
        "file": "refusal_dirs.pt",
    }


def test_official_direction_alone(tmp_path: Path) -> None:
    content = official()
    torch.save({"post": {"direction": content["post"]["direction"]}}, tmp_path / "d.pt")
    read = load_vectors(tmp_path / "d.pt")
    assert read.sites[MLP].steering_vector.tolist() == [2, -2]
    assert not read.has_input_means
    torch.save({"post": {"direction": content["post"]["direction"]}, "pre": content["pre"]}, tmp_path / "e.pt")
    read = load_vectors(tmp_path / "e.pt")
    assert read.sites[ATTN].steering_vector.tolist() == [1, -1]
    assert read.sites[ATTN].input.negative.tolist() == [3, 2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("post"), "no 'post'"),
        (lambda c: c["post"].pop("neg_mean"), "L0.attn has only .*output_positive"),
        (lambda c: c["pre"]["pos_mean"].popitem(), "L11.mlp has only"),
        (
            lambda c: c["post"]["pos_mean"].update({"transformer.h.0": torch.ones(1)}),
            "'transformer.h.0' is not a tensor",
        ),
        (lambda c: c["post"].update(pos_mean=torch.ones(1)), "post.pos_mean must be a dictionary"),
        (lambda c: c.update(pre=torch.ones(1)), "'pre' must be a dictionary"),
    ],
)
def test_damaged_official_directions(tmp_path: Path, change, message: str) -> None:
    content = official()
    change(content)
    torch.save(content, tmp_path / "d.pt")
    with pytest.raises(ArtifactError, match=message):
        load_vectors(tmp_path / "d.pt")


def test_official_edits_are_not_vectors(tmp_path: Path) -> None:
    torch.save({"attn": {(0, 1): {"lambda": 0.5}}, "mlp": {}, "meta": {}}, tmp_path / "edits.pt")
    with pytest.raises(ArtifactError, match="neither the official Steer2Edit directions"):
        load_vectors(tmp_path / "edits.pt")


def test_plain_tensors_by_site(tmp_path: Path) -> None:
    tensors = {
        "L0.attn": torch.tensor([1.0, 2.0]).half(),
        "L0.attn.input_mean": torch.ones(3),
        "L11.mlp": torch.ones(2),
    }
    save_file(tensors, tmp_path / "mine.safetensors")
    torch.save(tensors, tmp_path / "mine.pt")
    for name in ("mine.safetensors", "mine.pt"):
        read = load_vectors(tmp_path / name)
        assert read.sites[ATTN].steering_vector.tolist() == [1, 2]
        assert read.sites[ATTN].output.negative.tolist() == [0, 0]
        assert read.sites[ATTN].input.positive.tolist() == read.sites[ATTN].input.negative.tolist() == [1, 1, 1]
        assert read.sites[MLP].input is None
        assert read.metadata["origin"] == "imported"
        save_vectors(read, tmp_path / f"{name}-converted.safetensors")  # positive and negative mean share memory


def test_vectors_from_wherever_a_user_has_them(tmp_path: Path) -> None:
    own = vectors()
    assert load_vectors(own) is own
    save_vectors(own, tmp_path / "v.safetensors")
    require_equal(load_vectors(tmp_path / "v.safetensors"), own)
    require_equal(load_vectors(str(tmp_path / "v.safetensors")), own)
    by_site = load_vectors({ATTN: torch.tensor([1.0, 2.0])})
    by_name = load_vectors({"L0.attn": torch.tensor([1.0, 2.0]), "L0.attn.input_mean": torch.ones(3)})
    assert by_site.sites[ATTN].steering_vector.tolist() == by_name.sites[ATTN].steering_vector.tolist() == [1, 2]
    assert by_site.sites[ATTN].input is None
    assert by_name.sites[ATTN].input.midpoint.tolist() == [1, 1, 1]
    with pytest.raises(InvalidValueError, match="'layer3' is not the name"):
        load_vectors({"layer3": torch.ones(2)})


# --- files that are not what they say ---


def test_missing_file_directory_and_unknown_extension(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no file"):
        load_vectors(tmp_path / "v.safetensors")
    with pytest.raises(ArtifactError, match="is a directory"):
        load_vectors(tmp_path)
    for name, message in (
        ("v.npz", "read from .safetensors or .pt or .gguf or .svec or .json files"),
        ("v.gguf", "not a readable GGUF file with control vectors"),
        ("v.svec", "not sound JSON"),
    ):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ArtifactError, match=message):
            load_vectors(tmp_path / name)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    save_vectors(vectors(), tmp_path / "v.safetensors")
    whole = (tmp_path / "v.safetensors").read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(whole) - 1]:
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="truncated, damaged, or of another format"):
            load_vectors(tmp_path / "cut.safetensors")
    torch.save(official(), tmp_path / "d.pt")
    whole = (tmp_path / "d.pt").read_bytes()
    for length in [0, 1, 100, len(whole) // 2, len(whole) - 1]:
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="truncated, damaged, or of another format"):
            load_vectors(tmp_path / "cut.pt")


@pytest.mark.parametrize("name", ["v.safetensors", "v.pt"])
def test_text_is_no_vectors_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("L0.attn: 1, 2, 3\n" * 20)
    with pytest.raises(ArtifactError, match="of another format"):
        load_vectors(tmp_path / name)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("new_zip", [True, False])
def test_pickle_payload_is_refused_and_does_not_run(tmp_path: Path, new_zip: bool) -> None:
    torch.save({"L0.attn": torch.ones(2), "x": Payload(tmp_path / "ran")}, tmp_path / "v.pt",
               _use_new_zipfile_serialization=new_zip)  # fmt: skip
    with pytest.raises(ArtifactError, match="refused: besides tensors it holds pickled Python objects"):
        load_vectors(tmp_path / "v.pt")
    assert not (tmp_path / "ran").exists()


def rewrite(path: Path, change_header=None, **tensors: torch.Tensor | None) -> None:
    """Write our file again with a changed header or changed tensors; `None` drops one."""
    with safe_open(path, framework="pt") as file:
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = dict(file.metadata())
    for name, tensor in tensors.items():
        content[name] = tensor
    if change_header:
        change_header(header)
    save_file({name: tensor for name, tensor in content.items() if tensor is not None}, path, header)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(schema_version="2"), "schema version 2, .*reads up to 1. Upgrade"),
        (lambda h: h.update(schema_version="one"), "no valid schema version"),
        (lambda h: h.pop("schema_version"), "no valid schema version"),
        (lambda h: h.update(kind="weight-edit-components"), "holds 'weight-edit-components'"),
        (lambda h: h.update(metadata="{"), "v.safetensors, metadata is not sound JSON"),
        (lambda h: h.update(metadata="[" * 100_000), "v.safetensors, metadata is not sound JSON"),
        (lambda h: h.pop("diagnosis"), "v.safetensors, diagnosis is not sound JSON"),
        (lambda h: h.update(metadata="[]"), "metadata must hold a JSON object, but holds a list"),
        (lambda h: h.update(metadata="null"), "metadata: Input should be a valid dictionary"),
        (lambda h: h.update(metadata='{"draws": NaN}'), "NaN is not a finite number"),
        (lambda h: h.update(metadata='{"draws": [1, -1e400]}'), "-1e400 is not a finite number"),
        (lambda h: h.update(metadata='{"draws": 1, "draws": 2}'), "'draws' is there twice"),
        (lambda h: h.update(metadata='{"model": "tiny"}'), "metadata.model: "),
        (lambda h: h.update(metadata='{"model": {"fingerprint": 3}}'), "metadata.model.fingerprint: "),
        (lambda h: h.update(metadata='{"effects": {"decided_by": "first", "gate": []}}'), "metadata.effects.gate: "),
        (lambda h: h.update(metadata='{"preview": [{"positive": ["a"]}]}'), "metadata.preview.0.positive"),
        (lambda h: h.update(diagnosis='{"sites": 3}'), "diagnosis.sites: "),
        (lambda h: h.update(diagnosis='{"sites": {"L0.attn": {"auroc": "x"}}}'), "diagnosis.sites.L0.attn.norm: "),
    ],
)
def test_damaged_header(tmp_path: Path, change, message: str) -> None:
    save_vectors(vectors(), tmp_path / "v.safetensors")
    rewrite(tmp_path / "v.safetensors", change)
    with pytest.raises(ArtifactError, match=message):
        load_vectors(tmp_path / "v.safetensors")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("L0.attn.output_negative", None, "L0.attn has only"),
        ("L0.attn.input_negative", None, "L0.attn has only"),
        ("L0.attn", torch.ones(2), "L0.attn has only"),
        ("L2.mlp.input_mean", torch.ones(2), "L2.mlp has no v: it needs v, or"),
        ("L0.attn.output_negative", torch.ones(3), "positive mean has 2 entries and the negative 3"),
        ("L0.attn.output_negative", torch.ones(2, 1), "must be a vector"),
        ("L0.attn.output_negative", torch.ones(2, dtype=torch.int64), "must be a vector of floating-point"),
        ("L0.attn.output_negative", torch.tensor([1.0, float("nan")]), "non-finite"),
        ("L0.attn.output_middle", torch.ones(2), "'L0.attn.output_middle' is not the name"),
        ("L00.attn", torch.ones(2), "'L00.attn' is not the name"),
    ],
)
def test_damaged_tensors(tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str) -> None:
    save_vectors(vectors(), tmp_path / "v.safetensors")
    rewrite(tmp_path / "v.safetensors", **{name: tensor})
    with pytest.raises(ArtifactError, match=message) as raised:
        load_vectors(tmp_path / "v.safetensors")
    assert "v.safetensors" in str(raised.value)


def test_an_agreement_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    effects = SiteEffects(torch.ones(2), torch.ones(3), torch.ones(3), torch.ones(3), 0.5)
    save_vectors(SteeringVectors({ATTN: SiteMeans(means(1.0, 2.0), effects=effects)}), tmp_path / "v.safetensors")
    for bad in (math.nan, math.inf):
        rewrite(tmp_path / "v.safetensors", **{"L0.attn.agreement": torch.tensor([bad])})
        with pytest.raises(ArtifactError, match="an effect has entries that are not finite"):
            load_vectors(tmp_path / "v.safetensors")


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    for metadata in ({"contrast": "mine"}, {"model": {"name": 3}}):
        with pytest.raises(ArtifactError, match=f"metadata.{next(iter(metadata))}"):
            save_vectors(SteeringVectors({ATTN: SiteMeans(means(1.0))}, metadata), tmp_path / "v.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_file_without_vectors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(ArtifactError, match="at least one site"):
        load_vectors(tmp_path / "none.safetensors")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(ArtifactError, match="but list"):
        load_vectors(tmp_path / "list.pt")
