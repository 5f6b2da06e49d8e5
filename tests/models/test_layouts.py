"""Every family's sites: names, shapes and component widths, written out by hand; and models that no layout covers."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.pytorch_utils import Conv1D

from families import ALL_FAMILIES, DENSE, FAMILIES, MULTIMODAL, tiny_model, tiny_network
from steer2edit.core import Site
from steer2edit.errors import LayoutError, ModelError
from steer2edit.models import LanguageModel, Layout, find_sites, known_layouts

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

GPT2_READERS = ("attn.c_attn", "mlp.c_fc")

PHI = """
[phi]
layers = "model.layers"
attn = "self_attn.dense"
mlp = "mlp.fc2"
readers = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"]
"""
LLAMA_TABLE = {
    "layers": "model.layers",
    "attn": "self_attn.o_proj",
    "mlp": "mlp.down_proj",
    "readers": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"],
}


class TestFamilies:
    def test_every_claimed_family_is_proven_and_every_proven_one_claimed(self) -> None:
        claimed = [model_type for layout in known_layouts() for model_type in layout.model_types]
        assert len(claimed) == len(set(claimed)), "a model type belongs to one layout"
        inner = {tiny_network(family).config.get_text_config().model_type for family in MULTIMODAL}
        assert set(claimed) == set(FAMILIES) | inner

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
            assert projection.transposed == (family == "gpt2")
            assert (projection.bias is not None) == (family in WITH_BIAS)

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
        swapped = Layout(
            "swapped", ("transformer.h",), attn=("mlp.c_proj",), mlp=("attn.c_proj",), readers=GPT2_READERS
        )
        site = LanguageModel(tiny_network("gpt2"), layout=swapped).sites[Site(0, "attn")]
        assert site.shape == (32, 48)
        assert (site.component_width, site.component_count) == (12, 4)


class TestUnknown:
    def test_a_type_that_no_layout_names_is_accepted_if_one_fits(self) -> None:
        known = {model_type for layout in known_layouts() for model_type in layout.model_types}
        assert not {"olmo", "gemma"} & known
        for model_type in ("olmo", "gemma"):
            model = tiny_model(model_type)
            assert [p.name for p in model.sites.values()][:2] == [name.format(0) for name in LLAMA_LIKE]
            assert len(model.sites) == 6

    def test_a_type_that_no_layout_fits_lists_what_was_tried(self) -> None:
        with pytest.raises(LayoutError) as caught:
            tiny_model("phi")
        message = str(caught.value)
        assert message.startswith("no layout covers every residual writer of the model type 'phi'")
        for layout in known_layouts():
            assert f"layout {layout.name!r}: " in message
        assert "matched nothing; missing self_attn.o_proj, mlp.down_proj; not matched" in message
        assert "self_attn.dense, mlp.fc1, mlp.fc2" in message
        assert "layout 'gpt2': there is no list of layers at 'transformer.h'" in message
        assert "--layout FILE (docs/add-a-model.md)" in message

    @pytest.mark.parametrize("index", [0, 2])
    def test_an_extra_residual_writer_in_any_layer(self, index: int) -> None:
        class LayerWithMemory(LlamaDecoderLayer):
            def __init__(self, *args: object) -> None:
                super().__init__(*args)
                self.memory = nn.Linear(32, 32, bias=False)

            def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
                hidden_states = super().forward(hidden_states, *args, **kwargs)
                return hidden_states + self.memory(hidden_states)

        network = tiny_network("llama")
        network.model.layers[index] = LayerWithMemory(network.config, index)
        assert isinstance(network, LlamaForCausalLM)
        with pytest.raises(LayoutError) as caught:
            LanguageModel(network)
        assert (
            f"layout 'llama': layer {index}: matched self_attn.o_proj, mlp.down_proj; missing nothing; "
            "not matched memory\n"
        ) in str(caught.value)
        # the user knows that it does not matter: their own layout says so
        own = Layout.from_table("mine", {**LLAMA_TABLE, "readers": [*LLAMA_TABLE["readers"], "memory"]})
        assert len(LanguageModel(network, layout=own).sites) == 6

    def test_an_extra_matrix_that_is_no_module(self) -> None:
        network = tiny_network("llama")
        network.model.layers[1].memory = nn.Parameter(torch.zeros(3, 32))
        with pytest.raises(LayoutError, match="not matched memory"):
            LanguageModel(network)

    def test_a_missing_projection(self) -> None:
        network = tiny_network("llama")
        del network.model.layers[2].mlp
        with pytest.raises(
            LayoutError, match=r"layer 2: matched self_attn\.o_proj; missing mlp\.down_proj; not matched nothing"
        ):
            LanguageModel(network)

    def test_no_layers(self) -> None:
        with pytest.raises(LayoutError, match=r"layout 'llama': there is no list of layers at 'model\.layers'"):
            tiny_model("llama", num_hidden_layers=0)

    def test_columns_that_do_not_divide_into_heads(self) -> None:
        network = tiny_network("llama")
        network.config.num_attention_heads = 5
        with pytest.raises(
            LayoutError, match=r"L0\.attn: 32 input columns do not divide into the config's 5 attention"
        ):
            LanguageModel(network)


class TestLayoutFiles:
    def test_a_users_own(self, tmp_path: Path) -> None:
        path = tmp_path / "phi.toml"
        path.write_text(PHI, encoding="utf-8")
        layout = Layout.from_file(path)
        assert (layout.name, layout.attn, layout.mlp) == ("phi", ("self_attn.dense",), ("mlp.fc2",))
        sites = LanguageModel(tiny_network("phi"), layout=layout).sites
        assert sites[Site(2, "mlp")].name == "model.layers.2.mlp.fc2"
        assert sites[Site(2, "attn")].component_width == 8
        assert list(find_sites(tiny_network("phi"), layout).sites) == list(sites)

    def test_replaces_the_known_ones(self) -> None:
        layout = Layout("mine", ("model.blocks",), attn=("self_attn.o_proj",), mlp=("mlp.down_proj",))
        with pytest.raises(
            LayoutError, match=r"layout 'mine': there is no list of layers at 'model\.blocks'"
        ) as caught:
            LanguageModel(tiny_network("llama"), layout=layout)
        assert "layout 'llama'" not in str(caught.value)

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
            (PHI.replace('mlp = "mlp.fc2"\n', "").encode(), "layout 'phi': mlp is missing. See docs/add-a-model.md"),
            (b"[phi]\n", "layout 'phi': layers is missing; attn is missing"),
            ((PHI + "writers = []\n").encode(), "layout 'phi': writers is no key of a layout"),
            (PHI.replace('"mlp.fc2"', "3").encode(), "layout 'phi': mlp must be a list of text"),
            (PHI.replace('"mlp.fc1"', "3").encode(), "layout 'phi': readers.3 must be text"),
            ((PHI + 'model_types = "phi"\n').encode(), "layout 'phi': model_types must be a list of text"),
        ],
    )
    def test_malformed(self, content: bytes, message: str, tmp_path: Path) -> None:
        path = tmp_path / "layout.toml"
        path.write_bytes(content)
        with pytest.raises(LayoutError, match=re.escape(message)):
            Layout.from_file(path)

    def test_missing(self, tmp_path: Path) -> None:
        for path in (tmp_path / "nowhere.toml", tmp_path):
            with pytest.raises(LayoutError, match=f"cannot read a layout from {re.escape(str(path))}"):
                Layout.from_file(path)


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
