"""What every architecture must do, asked once of each, on one network.

The edit at run time = the edit in the weights = the adapter, loaded by PEFT alone = the checkpoint patched in the
base's files without loading the model, and the one written from memory, both loaded by transformers alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig

from architectures import REASONS, architectures, tiny_architecture
from families import ALL_FAMILIES, MIXTURES, random_site_means, tiny_network
from steer2edit.artifacts import (
    EditManifest,
    apply_to_files,
    load_edit,
    open_base,
    read_manifest,
    save_edit,
)
from steer2edit.core import SteeringVectors, WeightEdit
from steer2edit.editing import convert, edited, merged
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import LanguageModel
from steer2edit.models.loading import model_class

IDS = torch.arange(3, 3 + 24).view(2, 12)
STRENGTHS = (1.0, 0.0, -0.5)
FEW = ("llama", "gpt2", "gemma3", "qwen3_moe", "gpt_oss", "granitemoehybrid")
every_family = pytest.mark.parametrize("family", ALL_FAMILIES)


def logits(network: nn.Module) -> Tensor:
    with torch.inference_mode():
        return network(input_ids=IDS).logits.double()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@dataclass(frozen=True)
class Case:
    """A network, an edit of all that can be edited in it, and what they give; no test changes them."""

    build: Callable[[], nn.Module]
    model: LanguageModel
    edit: WeightEdit
    base: Tensor
    merged: dict[float, Tensor]  # by strength
    state: dict[float, dict[str, Tensor]]


@cache
def case(family: str, rho_attn: float | None = 0.2, rho_mlp: float | None = 0.2) -> Case:
    return make_case(lambda: tiny_network(family), rho_attn, rho_mlp)


def make_case(build: Callable[[], nn.Module], rho_attn: float | None = 0.2, rho_mlp: float | None = 0.2) -> Case:
    model = LanguageModel(build())
    generator = torch.Generator().manual_seed(1)
    vectors = SteeringVectors({site: random_site_means(module, generator) for site, module in model.sites.items()})
    edit = convert(model, vectors, Hyperparameters(rho_attn, rho_mlp, 0.1))
    found = Case(build, model, edit, logits(model.network), {}, {})
    for strength in STRENGTHS:
        with merged(model, edit, strength):
            found.merged[strength] = logits(model.network)
            found.state[strength] = {name: value.clone() for name, value in model.network.state_dict().items()}
    return found


def assert_hook_equals_merged(of: Case) -> None:
    for strength, expected in of.merged.items():
        with edited(of.model, of.edit, strength):
            hooked = logits(of.model.network)
        assert relative(hooked, expected) < 1e-4
        if strength == 0.0:
            assert torch.equal(hooked, of.base)
        else:
            assert relative(hooked, of.base) > 1e-2  # otherwise the comparison would show nothing
    assert torch.equal(logits(of.model.network), of.base)


def assert_same_edit(model: LanguageModel, read: WeightEdit, wanted: WeightEdit) -> None:
    assert list(read.sites) == list(wanted.sites)
    for site, one in wanted.sites.items():
        found = read.sites[site]
        for name in ("output_direction", "row", "magnitude", "importance"):
            assert getattr(found, name).numpy().tobytes() == getattr(one, name).numpy().tobytes()
        assert found.experts == one.experts == model.sites[site].sizes
    assert list(read.components()) == list(wanted.components())


def assert_adapter_equals_merged(of: Case, directory: Path, strength: float) -> None:
    written = of.edit.scaled(strength)
    save_edit(of.model, written, directory)
    adapter = PeftModel.from_pretrained(of.build(), str(directory))
    assert relative(logits(adapter), of.merged[strength]) < 1e-4
    assert_same_edit(of.model, load_edit(directory), written)


def assert_checkpoint_equals_merged(of: Case, directory: Path, strength: float) -> None:
    network = model_class(AutoConfig.from_pretrained(directory)).from_pretrained(directory, dtype="auto")
    assert torch.equal(logits(network), of.merged[strength])
    found, expected = network.state_dict(), of.state[strength]
    assert found.keys() == expected.keys()
    assert all(same_bits(value, expected[name]) for name, value in found.items())


def same_bits(one: Tensor, other: Tensor) -> bool:
    raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*raw)


@every_family
def test_hook_equals_merged(family: str) -> None:
    of = case(family)
    assert set(of.edit.sites) == set(of.model.sites)
    assert_hook_equals_merged(of)


@every_family
def test_adapter_equals_merged_and_is_read_as_it_was_written(family: str, tmp_path: Path) -> None:
    assert_adapter_equals_merged(case(family), tmp_path / "edit", -0.5)
    records = read_manifest(tmp_path / "edit", EditManifest).sites.values()
    assert any(record.experts for record in records) == (family in MIXTURES)


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize(("rho_attn", "rho_mlp"), [(0.2, None), (None, 0.2)], ids=["mixers", "mlp"])
def test_one_block(family: str, rho_attn: float | None, rho_mlp: float | None, tmp_path: Path) -> None:
    of = case(family, rho_attn, rho_mlp)
    assert {site.block == "mlp" for site in of.edit.sites} == {rho_mlp is not None}
    assert_hook_equals_merged(of)
    assert_adapter_equals_merged(of, tmp_path / "edit", 1.0)


@every_family
def test_patched_checkpoint_equals_merged(family: str, tmp_path: Path) -> None:
    """In bits; and only what the edit is in has changed."""
    assert_patched_checkpoint_equals_merged(case(family), tmp_path)


def assert_patched_checkpoint_equals_merged(of: Case, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    of.model.network.save_pretrained(base, max_shard_size="30KB")
    opened = open_base(str(base))
    assert opened.fingerprint == of.model.fingerprint
    manifest = apply_to_files(opened, [(of.edit, -0.5)], out)
    assert_checkpoint_equals_merged(of, out, -0.5)
    before, after = (
        {k: t for path in directory.glob("model*.safetensors") for k, t in load_file(path).items()}
        for directory in (base, out)
    )
    assert before.keys() == after.keys()
    assert {k for k in before if not same_bits(before[k], after[k])} == manifest.edited_tensors.keys()
    projections = {p.key for site in of.model.sites.values() for p in site.projections}
    assert {key for record in manifest.edited_tensors.values() for key in record.projections} == projections


UNLIKE_THEIR_FILES = ("deepseek_ocr2", "ernie4_5_vl_moe", "laguna", "mistral_large4", "unlimited_ocr")


@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(name, marks=[] if name in UNLIKE_THEIR_FILES else pytest.mark.slow)
        for name in architectures()
        if name not in REASONS
    ],
)
def test_every_architecture_of_transformers(model_type: str, tmp_path: Path) -> None:
    """The quick ones are those whose new names PEFT renames, and whose experts are in another order in the file."""
    of = make_case(lambda: tiny_architecture(model_type))
    assert_hook_equals_merged(of)
    assert_adapter_equals_merged(of, tmp_path / "edit", -0.5)
    assert_patched_checkpoint_equals_merged(of, tmp_path)
