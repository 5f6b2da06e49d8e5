"""Every family's sites: names, shapes and component widths, written out by hand; and models that no layout covers."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.pytorch_utils import Conv1D

from architectures import tiny_architecture
from families import ALL_FAMILIES, DENSE, FAMILIES, tiny_model, tiny_network
from steer2edit.core import Site
from steer2edit.errors import LayoutError, ModelError
from steer2edit.models import LanguageModel, Layout, find_sites, sites

IDS = torch.arange(3, 3 + 24).view(2, 12)
LLAMA_LIKE = ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj")

# names of the sites of a layer, m of the attention's site, columns per head, m of the MLP's site; d = 32 and 4 heads
EXPECTED: dict[str, tuple[tuple[str, str], int, int, int]] = {
    "llama": (LLAMA_LIKE, 32, 8, 48),
    "mistral": (LLAMA_LIKE, 32, 8, 48),
    "qwen2": (LLAMA_LIKE, 32, 8, 48),
    "qwen3": (LLAMA_LIKE, 48, 12, 48),  # head_dim 12 ≠ 32 / 4
    "gemma2": (LLAMA_LIKE, 64, 16, 48),
    "gemma3_text": (LLAMA_LIKE, 64, 16, 48),
    "phi3": (LLAMA_LIKE, 32, 8, 48),
    "olmo2": (LLAMA_LIKE, 32, 8, 48),
    "granite": (LLAMA_LIKE, 32, 8, 48),
    "smollm3": (LLAMA_LIKE, 32, 8, 48),
    "cohere2": (LLAMA_LIKE, 32, 8, 48),
    "stablelm": (LLAMA_LIKE, 32, 8, 48),
    "starcoder2": (("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.c_proj"), 32, 8, 48),
    "gpt_neox": (("gpt_neox.layers.{}.attention.dense", "gpt_neox.layers.{}.mlp.dense_4h_to_h"), 32, 8, 48),
    "falcon": (("transformer.h.{}.self_attention.dense", "transformer.h.{}.mlp.dense_4h_to_h"), 32, 8, 128),
    "opt": (("model.decoder.layers.{}.self_attn.out_proj", "model.decoder.layers.{}.fc2"), 32, 8, 48),
    "gpt2": (("transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj"), 32, 8, 48),
}
WITH_BIAS = {"starcoder2", "gpt_neox", "falcon", "opt", "gpt2"}

# of families without shared key-value heads: which module computes the values, and where in its output [t, ...]
VALUES: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "gpt2": ("transformer.h.1.attn.c_attn", lambda qkv: qkv[:, 64:].view(-1, 4, 8)),
    "opt": ("model.decoder.layers.1.self_attn.v_proj", lambda v: v.view(-1, 4, 8)),
    "gpt_neox": ("gpt_neox.layers.1.attention.query_key_value", lambda qkv: qkv.view(-1, 4, 24)[..., 16:]),
    "deepseek_v3": ("model.layers.1.self_attn.kv_b_proj", lambda kv: kv.view(-1, 4, 20)[..., 8:]),
}

GATED_ATTENTION = ("qwen3_next",)  # what a head attends to is multiplied by a gate before the projection

PHI = """
[phi]
layers = "model.layers"
attn = "self_attn.dense"
mlp = "mlp.fc2"
"""
LLAMA = Layout("mine", ("model.layers",), attn=("self_attn.o_proj",), mlp=("mlp.down_proj",))


class TestFamilies:
    @pytest.mark.parametrize("family", EXPECTED)
    def test_names_shapes_and_widths(self, family: str) -> None:
        model = tiny_model(family)
        names, attn_columns, head_columns, mlp_columns = EXPECTED[family]
        order = [Site(layer, block) for layer in range(3) for block in ("attn", "mlp")]
        assert list(model.sites) == order
        for site, projection in model.sites.items():
            attention = site.block == "attn"
            assert projection.site == site
            assert projection.name == names[0 if attention else 1].format(site.layer)
            assert projection.module is model.network.get_submodule(projection.name)
            assert projection.shape == (32, attn_columns if attention else mlp_columns)
            assert tuple(projection.weight.shape) == projection.shape
            assert projection.component_width == (head_columns if attention else 1)
            assert projection.component_count == (4 if attention else mlp_columns)
            assert projection.only.transposed == (family == "gpt2")
            assert (projection.only.bias is not None) == (family in WITH_BIAS)

    @pytest.mark.parametrize("family", ALL_FAMILIES)
    def test_a_site_computes_w_x_plus_b(self, family: str) -> None:
        """In the orientation [d, m], from the inputs and outputs of a forward pass."""
        model = tiny_model(family)
        seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        plain = {p.key: p for module in model.sites.values() for p in module.plain}
        assert plain
        for key, projection in plain.items():
            # a copy, because Falcon adds the attention's output to the MLP's in place
            projection.module.register_forward_hook(lambda _, x, y, key=key: seen.update({key: (x[0], y.clone())}))
        with torch.inference_mode():
            model.network(input_ids=IDS)
        assert set(seen) == set(plain)
        for key, (x, y) in seen.items():
            projection = plain[key]
            expected = x.double() @ projection.weight.double().T
            if projection.bias is not None:
                expected = expected + projection.bias.double()
            assert torch.allclose(y.double(), expected, atol=1e-5)

    @pytest.mark.parametrize("family", [family for family in FAMILIES if family not in GATED_ATTENTION])
    def test_a_heads_columns_are_what_that_head_attends_to(self, family: str) -> None:
        """x_h = A_h V_h for head h's columns x_h and its attention probabilities A_h, so A_h⁻¹ x_h are its values.

        Two heads that share a key-value head must give the same values; where none is shared, they must be the values
        that the model's own projection computes. Another grouping of the columns gives neither.
        """
        network = tiny_network(family).double()
        if family not in DENSE:  # the fused kernels of experts have no float64
            network.set_experts_implementation("eager")
        if family != "falcon":  # which computes its probabilities when asked for them
            network.set_attn_implementation("eager")
        site = LanguageModel(network).sites[Site(1, "attn")]
        x, projected = [], []
        site.module.register_forward_hook(lambda _, inputs, output: x.append(inputs[0][0]))
        if family in VALUES:
            name, take = VALUES[family]
            module = network.get_submodule(name)
            module.register_forward_hook(lambda _, inputs, output: projected.append(take(output[0])))
        with torch.inference_mode():
            attention = network(input_ids=IDS[:1, :5], output_attentions=True).attentions
        attention = attention[1 if len(attention) == 3 else 0][0]  # a hybrid gives those of its one attention
        columns = x[0].unflatten(-1, (site.component_count, site.component_width)).transpose(0, 1)
        values = torch.linalg.solve(attention.double(), columns)
        if family in VALUES:
            assert torch.allclose(values, projected[0].transpose(0, 1), atol=1e-8)
        else:
            assert torch.allclose(values[0], values[1], atol=1e-8)
            assert torch.allclose(values[2], values[3], atol=1e-8)
            assert not torch.allclose(values[1], values[2], atol=1e-2)

    @pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
    def test_a_weight_is_a_view_that_edits_the_model(self, family: str) -> None:
        model = tiny_model(family)
        for site, projection in model.sites.items():
            stored = model.network.state_dict()[f"{projection.name}.weight"]
            assert projection.weight.data_ptr() == stored.data_ptr()
            with torch.inference_mode():
                before = model.network(input_ids=IDS).logits
            projection.weight[3, 5] += 1
            row, column = (5, 3) if family == "gpt2" else (3, 5)
            assert model.network.get_parameter(f"{projection.name}.weight")[row, column] == projection.weight[3, 5]
            with torch.inference_mode():
                assert not torch.equal(model.network(input_ids=IDS).logits, before), site
            projection.weight[3, 5] -= 1

    def test_gpt2_really_is_stored_transposed(self) -> None:
        projection = tiny_model("gpt2").sites[Site(0, "mlp")]
        assert isinstance(projection.module, Conv1D)
        assert tuple(projection.module.weight.shape) == (48, 32)
        assert projection.shape == (32, 48)

    def test_the_columns_of_a_transposed_weight_that_is_not_square(self) -> None:
        """GPT-2's own attention projection is square, so its MLP's, [48, 32] as stored, stands in for one."""
        swapped = Layout("swapped", ("transformer.h",), attn=("mlp.c_proj",), mlp=("attn.c_proj",))
        site = LanguageModel(tiny_network("gpt2"), layout=swapped).sites[Site(0, "attn")]
        assert site.shape == (32, 48)
        assert (site.component_width, site.component_count) == (12, 4)


class LayerWithMemory(LlamaDecoderLayer):
    """A layer that writes to the residual stream once more."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.memory = nn.Linear(32, 32, bias=False)

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        hidden_states = super().forward(hidden_states, *args, **kwargs)
        return hidden_states + self.memory(hidden_states)


class LayerWithParameter(LayerWithMemory):
    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        hidden_states = LlamaDecoderLayer.forward(self, hidden_states, *args, **kwargs)
        return hidden_states + hidden_states @ self.memory.weight  # which no hook sees


def with_layer(kind: type[LlamaDecoderLayer], index: int) -> nn.Module:
    network = tiny_network("llama")
    layer = kind(network.config, index)
    layer.load_state_dict(network.model.layers[index].state_dict(), strict=False)
    network.model.layers[index] = layer.eval()
    return network


class TestPlanted:
    @pytest.mark.parametrize("index", [0, 2])
    def test_an_unnamed_writer_is_refused_by_its_name(self, index: int) -> None:
        with pytest.raises(
            LayoutError, match=rf"model\.layers\.{index}: .* silent, memory still writes to it\. Name it in the layout"
        ):
            LanguageModel(with_layer(LayerWithMemory, index), layout=LLAMA)

    @pytest.mark.parametrize("index", [0, 2])
    def test_a_writer_beside_the_mlp_is_found_and_left_out(self, index: int) -> None:
        model = LanguageModel(with_layer(LayerWithMemory, index))
        assert model.structure.left_out == {f"model.layers.{index}.memory": "the layer has another MLP"}
        assert [p.name for p in model.sites.values()] == [p.name for p in tiny_model("llama").sites.values()]

    @pytest.mark.parametrize("layout", [None, LLAMA])
    def test_a_writer_that_is_no_module(self, layout: Layout | None) -> None:
        with pytest.raises(LayoutError, match=r"model\.layers\.1: with every module silent the layer still changes"):
            LanguageModel(with_layer(LayerWithParameter, 1), layout=layout)

    def test_a_named_module_that_does_not_reach_the_stream(self) -> None:
        network = tiny_network("llama")
        for layer in network.model.layers:
            layer.idle = nn.Linear(48, 32)
        idle = Layout("mine", ("model.layers",), ("self_attn.o_proj",), ("idle",), left_out=("mlp.down_proj",))
        with pytest.raises(LayoutError, match=r"L0\.mlp: what model\.layers\.0\.idle puts out does not reach"):
            LanguageModel(network, layout=idle)

    def test_a_reader_named_as_a_writer(self) -> None:
        wrong = Layout("mine", ("model.layers",), ("self_attn.q_proj",), ("mlp.down_proj",))
        with pytest.raises(LayoutError, match=r"model\.layers\.0: .* self_attn\.o_proj still writes to it"):
            LanguageModel(tiny_network("llama"), layout=wrong)

    @pytest.mark.parametrize("heads", [2, 8, 16])
    @pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "olmo2", "gpt_neox"])
    def test_a_wrong_number_of_heads_is_refused(self, family: str, heads: int) -> None:
        network = tiny_network(family)
        layout = LanguageModel(network).structure.layout
        network.config.heads_by_mistake = heads  # there are four, of eight columns
        wrong = replace(layout, heads={layout.attn[0]: "heads_by_mistake"})
        with pytest.raises(LayoutError, match=rf"L0\.attn: .* carry one head together, but with {heads} heads each"):
            LanguageModel(network, layout=wrong)

    def test_heads_that_the_config_does_not_count_are_left_out(self) -> None:
        network = tiny_network("llama")
        network.config.num_attention_heads = 16  # the layers were made with four
        model = LanguageModel(network)
        assert {site.block for site in model.sites} == {"mlp"}
        assert set(model.structure.left_out.values()) == {
            "its 32 columns belong together 8 at a time, and the config has no such number of heads"
        }

    def test_nothing_is_said_of_heads_that_cannot_be_seen(self) -> None:
        network = tiny_network("llama", num_hidden_layers=1)
        swapped = Layout("mine", ("model.layers",), ("mlp.down_proj",), ("self_attn.o_proj",))
        found = LanguageModel(network, layout=swapped).structure
        assert (len(found.sites), found.heads_seen) == (2, ())

    def test_a_pruned_projection_is_no_error(self) -> None:
        network = tiny_network("llama")
        network.model.layers[1].mlp.down_proj.weight.data.zero_()
        assert len(LanguageModel(network, layout=LLAMA).sites) == 6

    def test_layers_that_do_nothing_yet_have_the_sites_of_the_others(self) -> None:
        """As those that are put into a model to be trained: their projections begin at zero."""
        network = tiny_network("llama")
        zero = [network.model.layers[0].self_attn.o_proj.weight, network.model.layers[0].mlp.down_proj.weight]
        with torch.no_grad():
            for weight in zero:
                weight.zero_()
        assert set(find_sites(network).sites) == {Site(i, block) for i in range(3) for block in ("attn", "mlp")}
        assert not any(weight.any() for weight in zero)

    def test_the_model_is_left_as_it_was(self) -> None:
        network = tiny_network("granitemoehybrid")
        before = {name: value.clone() for name, value in network.state_dict().items()}
        torch.manual_seed(3)
        state = torch.get_rng_state()
        LanguageModel(network)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


class TestRefused:
    def test_a_model_that_does_not_run(self) -> None:
        network = tiny_network("llama")
        del network.model.layers[2].mlp
        with pytest.raises(LayoutError, match=r"'llama' does not run on a few tokens of text alone: .* 'mlp'"):
            LanguageModel(network)

    def test_no_layers(self) -> None:
        with pytest.raises(LayoutError, match="no decoder layers are found in the model type 'llama'"):
            tiny_model("llama", num_hidden_layers=0)

    def test_columns_that_do_not_divide_into_heads(self) -> None:
        network = tiny_network("llama")
        network.config.num_attention_heads = 5
        with pytest.raises(
            LayoutError, match=r"L0\.attn: 32 input columns do not divide into heads: .*num_attention_heads = 5"
        ):
            LanguageModel(network, layout=LLAMA)

    @pytest.mark.parametrize("model_type", ["deepseek_v4", "gemma3n_text", "qwen4_exp_text"])
    def test_several_residual_streams_are_mixed_and_nothing_else_writes_to_them(self, model_type: str) -> None:
        """Whichever axis they are on; a writer beside the named ones is no mixture of them."""
        network = tiny_architecture(model_type)
        found = find_sites(network)
        assert found.heads_seen is not None
        assert {site.layer for site in found.sites} == set(range(network.config.num_hidden_layers))
        layer = network.get_submodule(f"{found.path}.1")
        layer.memory, own = nn.Linear(64, 64, bias=False), layer.forward

        def forward(hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            new = own(hidden_states, *args, **kwargs)
            return new + layer.memory(hidden_states.unflatten(-1, (-1, 64))).view(new.shape)

        layer.forward = forward  # type: ignore[method-assign]
        with pytest.raises(LayoutError, match=r"layers\.1: .* silent, memory still writes to it\. Name it"):
            find_sites(network, found.layout)

    def test_a_model_that_writes_to_its_weights(self) -> None:
        with pytest.raises(LayoutError, match=r"writes to its own weights as it runs \(rwkv\.blocks\.0\.attention"):
            LanguageModel(tiny_architecture("rwkv"))

    def test_nothing_to_edit(self) -> None:
        with pytest.raises(
            LayoutError, match=r"nothing in the model type 'mamba' can be edited \(mixer\.out_proj: PEFT"
        ):
            LanguageModel(tiny_architecture("mamba"))


class TestWithoutWeights:
    @pytest.mark.parametrize("family", ["llama", "qwen3_next", "gemma3"])
    def test_a_larger_model_is_found_on_its_tiny_twin(self, family: str) -> None:
        network = tiny_network(family)
        with torch.device("meta"):
            large = type(network)._from_config(network.config)
        found = find_sites(large)
        assert found.heads_seen is not None
        assert found.layout == LanguageModel(network).structure.layout
        assert all(module.weight is not None for module in network.modules() if isinstance(module, nn.Linear))

    def test_where_no_twin_can_be_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with torch.device("meta"):
            network = LlamaForCausalLM(tiny_network("llama").config)
        monkeypatch.setattr(sites, "tiny_twin", lambda _: (None, "sizes do not fit"))
        with pytest.raises(LayoutError, match=r"no small model of the type 'llama' .* \(sizes do not fit\).*--layout"):
            find_sites(network)
        found = find_sites(network, LLAMA)
        assert len(found.sites) == 6
        assert found.heads_seen is None


class TestLayoutFiles:
    def test_a_users_own(self, tmp_path: Path) -> None:
        path = tmp_path / "phi.toml"
        path.write_text(PHI, encoding="utf-8")
        layout = Layout.given(path)
        assert (layout.name, layout.attn, layout.mlp) == ("phi", ("self_attn.dense",), ("mlp.fc2",))
        sites = LanguageModel(tiny_network("phi"), layout=layout).sites
        assert sites[Site(2, "mlp")].name == "model.layers.2.mlp.fc2"
        assert sites[Site(2, "attn")].component_width == 8
        assert list(find_sites(tiny_network("phi"), layout).sites) == list(sites)

    @pytest.mark.parametrize("family", ALL_FAMILIES)
    def test_what_is_found_can_be_written_and_read(self, family: str, tmp_path: Path) -> None:
        found = tiny_model(family).structure.layout
        path = tmp_path / "layout.toml"
        path.write_text(found.to_toml(), encoding="utf-8")
        assert Layout.given(path) == found

    def test_replaces_what_is_found(self) -> None:
        layout = Layout("mine", ("model.blocks",), attn=("self_attn.o_proj",), mlp=("mlp.down_proj",))
        with pytest.raises(LayoutError, match=r"layout 'mine': there is no list of layers at 'model\.blocks'"):
            LanguageModel(tiny_network("llama"), layout=layout)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "must hold exactly one [table]"),
            (b'layers = "model.layers"\n', "must hold exactly one [table]"),
            (PHI.encode() * 2, "cannot read a layout from"),
            ((PHI + PHI.replace("[phi]", "[other]")).encode(), "must hold exactly one [table]"),
            (b"[phi\n", "cannot read a layout from"),
            (b"\xff\xfe[phi]", "cannot read a layout from"),
            (b"\x00\x01\x02", "cannot read a layout from"),
            (b"[phi]\n", "layout 'phi': layers: Field required. See docs/add-a-model.md"),
            ((PHI + "writers = []\n").encode(), "layout 'phi': writers: Unexpected keyword argument"),
            (PHI.replace('"mlp.fc2"', "3").encode(), "layout 'phi': mlp: Input should be a valid tuple"),
            ((PHI + "left_out = [3]\n").encode(), "layout 'phi': left_out.3.[key]: Input should be a valid string"),
            ((PHI + 'left_out = "phi"\n').encode(), "layout 'phi': left_out: Input should be a valid dictionary"),
        ],
    )
    def test_malformed(self, content: bytes, message: str, tmp_path: Path) -> None:
        path = tmp_path / "layout.toml"
        path.write_bytes(content)
        with pytest.raises(LayoutError, match=re.escape(message)):
            Layout.given(path)

    def test_missing(self, tmp_path: Path) -> None:
        for path in (tmp_path / "nowhere.toml", tmp_path):
            with pytest.raises(LayoutError, match=f"cannot read a layout from {re.escape(str(path))}"):
                Layout.given(path)


class TestWeightsThatCannotBeEdited:
    def test_quantised(self) -> None:
        model = tiny_model("llama")
        site = model.sites[Site(0, "mlp")]
        site.module.weight = nn.Parameter(torch.zeros(32, 48, dtype=torch.int8), requires_grad=False)
        with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.down_proj: .*torch\.int8.*unquantised"):
            _ = site.weight

    def test_left_on_no_device(self) -> None:
        model = tiny_model("llama")
        site = model.sites[Site(1, "attn")]
        site.module.to("meta")
        with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.o_proj: .* device meta"):
            _ = site.weight


def test_a_weight_that_is_not_finite_is_told() -> None:
    network = tiny_network("llama")
    with torch.no_grad():
        network.model.layers[0].self_attn.o_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"LlamaDecoderLayer .* not finite: a weight is damaged, or .* overflows"):
        find_sites(network)
