"""Quantised bases: W as the modules apply it, the edit beside it as a hook and as an adapter; what is refused."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_checkpoint import save_checkpoint, word_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from families import tiny_network
from steer2edit.artifacts import apply_to_files, save_edit
from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.editing import convert, edited, merged
from steer2edit.errors import ArtifactError, ModelError
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import LanguageModel, load_model
from steer2edit.models.chat import EncodedResponse
from steer2edit.models.effects import response_effects, whole_response, without_gradients
from steer2edit.models.loading import wrap_model
from steer2edit.models.site_module import Projection
from steer2edit.steering.contrast import Contrast, ContrastSet
from steer2edit.steering.extract import extract
from tiny_chat import tiny_tokenizer


class Packed(nn.Module):
    """A linear module whose weight is int8 with a scale for each row, as most formats have it."""

    def __init__(self, linear: nn.Linear, *, differentiable: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(dim=1) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("packed", (linear.weight.detach() / scale[:, None]).round().to(torch.int8))
        self.bias = linear.bias
        self.differentiable = differentiable

    @property
    def exact(self) -> torch.Tensor:
        return self.packed.float() * self.scale[:, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x if self.differentiable else x.detach(), self.exact, self.bias)


def packed_network(family: str = "llama", **options: bool) -> nn.Module:
    network = tiny_network(family)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            network.set_submodule(name, Packed(module, **options))
    return network


@pytest.fixture(scope="module")
def packed() -> LanguageModel:
    return LanguageModel(packed_network().eval(), name="packed")


def random_edit(model: LanguageModel) -> WeightEdit:
    generator = torch.Generator().manual_seed(1)
    sites = {}
    for site, module in model.sites.items():
        (d, m), n = module.shape, module.component_count
        u, row = torch.randn(d, generator=generator), torch.randn(m, generator=generator)
        sites[site] = SiteEdit(u / u.norm(), 0.3 * row, torch.ones(n), torch.ones(n), module.sizes)
    return WeightEdit(sites, {"model": model.describe()})


def logits(network: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return network(input_ids=torch.arange(3, 3 + 24).view(2, 12)).logits.double()


def test_sites_and_weights_are_those_of_the_plain_model(packed: LanguageModel) -> None:
    plain = LanguageModel(tiny_network("llama"))
    assert list(packed.sites) == list(plain.sites)
    assert packed.dtype == torch.float32
    for site, module in packed.sites.items():
        assert (module.shape, module.component_width) == (plain.sites[site].shape, plain.sites[site].component_width)
        assert torch.allclose(module.weight, module.module.exact, atol=1e-6)
        assert (module.weight - plain.sites[site].weight).abs().max() < 0.02 * plain.sites[site].weight.abs().max()


@pytest.mark.parametrize("family", ["starcoder2", "gemma2", "qwen3_moe"])
def test_biases_norms_and_the_attention_beside_plain_experts(family: str) -> None:
    model = LanguageModel(packed_network(family).eval())
    plain = LanguageModel(tiny_network(family))
    assert list(model.sites) == list(plain.sites)
    for module in model.sites.values():
        for projection in (p for p in module.projections if p.quantised):
            bias = projection.module.bias
            assert torch.allclose(projection.weight, projection.module.exact, atol=1e-6)
            assert projection.module.bias is bias  # it was taken away for a while


def test_the_hook_is_the_edit_of_the_dequantised_weights(packed: LanguageModel) -> None:
    edit = random_edit(packed)
    base = logits(packed.network)
    with edited(packed, edit):
        hook = logits(packed.network)
    dense = tiny_network("llama")
    for name, module in packed.network.named_modules():
        if isinstance(module, Packed):
            dense.get_submodule(name).weight.data = module.exact
    with merged(LanguageModel(dense, name="packed"), edit, allow_mismatch=True):
        expected = logits(dense)
    assert (hook - expected).norm() < 1e-4 * (hook - base).norm()
    wrong = r"o_proj is quantised \(Packed\).*at run time or as an adapter"
    with pytest.raises(ModelError, match=wrong), merged(packed, edit):
        pass


def effects(model: LanguageModel) -> dict[Site, torch.Tensor]:
    u, response = torch.ones(32) / 32**0.5, EncodedResponse((1, 5, 6, 9, 4), 2)
    return next(response_effects(model, [response], dict.fromkeys(model.sites, u), whole_response)).sites


@pytest.mark.parametrize("family", ["llama", "starcoder2", "qwen3_moe"])
def test_effects_where_kernels_pass_no_gradient(family: str) -> None:
    """Against the same matrices differentiated by torch; and all modules are as they were."""
    expected = effects(LanguageModel(packed_network(family).eval()))
    model = LanguageModel(packed_network(family, differentiable=False).eval())
    without = without_gradients(model)
    assert len(without) > len(model.sites)
    assert all(isinstance(p.module, Packed) for p in without)
    base = logits(model.network)
    found = effects(model)
    for site, e in expected.items():
        assert e.norm() > 0
        assert torch.allclose(found[site], e, rtol=1e-4, atol=1e-6)
    assert not any("forward" in vars(module) for module in model.network.modules())
    assert torch.equal(logits(model.network), base)


def test_own_gradients_are_used_where_they_are_right() -> None:
    assert without_gradients(LanguageModel(packed_network().eval())) == []


def test_a_format_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 2:
            raise NotImplementedError("no kernel for this device")
        return nn.functional.linear(x, self.exact, self.bias)

    monkeypatch.setattr(Packed, "forward", no_kernel)
    with pytest.raises(ModelError, match=r"_proj is quantised in a format that cannot be read here \(Packed: no k"):
        wrap_model(packed_network().eval(), word_tokenizer())


def test_a_format_that_cannot_be_loaded(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    settings = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    wrong = r"are quantised, and cannot be loaded on this machine: .*GPTQ.*\. Install what it asks for, or use the unq"
    with pytest.raises(ModelError, match=wrong):
        load_model(str(tmp_path), device="cpu")


def dequantised(model: LanguageModel) -> LanguageModel:
    """The model with every packed matrix replaced by the one that it applies."""
    network = tiny_network("llama", hidden_size=128, intermediate_size=256, vocab_size=len(tiny_tokenizer()))
    for name, parameter in network.named_parameters():
        module = model.network.get_submodule(name.rpartition(".")[0])
        packed = Projection(name, module, slice(0), False, quantised=torch.float32)
        parameter.data = packed.weight if "_proj" in name else module.weight.detach()
    return LanguageModel(network.eval())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.filterwarnings("ignore")  # those of bitsandbytes and its kernels are not ours
def test_bitsandbytes(tmp_path: Path, bits: int) -> None:
    """A checkpoint as it quantises one, for real on the CPU: capture, convert, the edit as a hook and through PEFT."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    wide = {"hidden_size": 128, "intermediate_size": 256}
    network = tiny_network("llama", **wide, vocab_size=len(tiny_tokenizer()))
    network.save_pretrained(tmp_path / "plain")
    options = {4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 8: {"load_in_8bit": True}}[bits]
    settings = BitsAndBytesConfig(**options)
    AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=settings, device_map={"": "cpu"}, dtype=torch.float32
    ).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = load_model(str(tmp_path / "base"), dtype="float32", device="cpu")
    for site, module in model.sites.items():
        kind = bitsandbytes.nn.Linear4bit if bits == 4 else bitsandbytes.nn.Linear8bitLt
        assert isinstance(module.module, kind)
        error = module.weight - network.get_parameter(f"{module.name}.weight")
        assert 0 < error.norm() < {4: 0.15, 8: 0.02}[bits] * module.weight.norm(), site
        x = torch.randn(3, module.shape[1], generator=torch.Generator().manual_seed(0))
        wanted = x @ module.weight.T  # 8 bit rounds its input as well
        assert (module.module(x) - wanted).norm() < {4: 1e-2, 8: 3e-2}[bits] * wanted.norm()
    u = torch.ones(128) / 128**0.5
    responses, directions = [EncodedResponse((1, 5, 6, 9, 4), 2)], dict.fromkeys(model.sites, u)
    dense = dequantised(model)
    found, expected = (next(response_effects(m, responses, directions, whole_response)).sites for m in (model, dense))
    for site, e in expected.items():
        assert (found[site] - e).norm() < 0.1 * e.norm(), site  # kernels that round
    pairs = [tuple((p, r) for p in ("How do I", "one two")) for r in ("I'm sorry", "Mix the flour")]
    contrast = ContrastSet("tiny", {"train": Contrast(*pairs)}, {})
    vectors = extract(model, contrast)
    edit = convert(model, vectors, Hyperparameters(rho_attn=0.1, rho_mlp=0.1, alpha=0.5), force=True)
    save_edit(model, edit.scaled(2.0), tmp_path / "edit")
    base = logits(model.network)
    with edited(model, edit.scaled(2.0)):
        hook = logits(model.network)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32, device_map={"": "cpu"})
    adapter = logits(PeftModel.from_pretrained(again, tmp_path / "edit"))
    assert (hook - base).norm() > 1e-3 * base.norm()
    assert (hook - adapter).norm() < 1e-2 * (hook - base).norm()
    with pytest.raises(ArtifactError, match=r"is quantised in .*bitsandbytes.*Use the edit as an adapter"):
        apply_to_files(str(tmp_path / "base"), [(edit, 1.0)], tmp_path / "out", allow_mismatch=True)
