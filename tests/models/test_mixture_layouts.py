"""Sites of mixtures of experts, hybrids and multimodal models, written out by hand from the models' own code."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import ALL_FAMILIES, MULTIMODAL, tiny_model, tiny_network
from steer2edit.core import Component, Experts, Site
from steer2edit.errors import LayoutError
from steer2edit.models import LanguageModel, Layout, SiteModule, load_skeleton

IDS = torch.arange(3, 3 + 24).view(2, 12)

# by layer: (site's name in the layer, components, columns per component) of attention or mixer, then of the MLP; a
# mixture is (module of the routed experts, (experts, width, shared neurons), name of the shared expert)
Dense = tuple[str, int, int]
Mixture = tuple[str, tuple[int, int, int], str | None]
O_PROJ: Dense = ("self_attn.o_proj", 4, 8)
O_PROJ_12: Dense = ("self_attn.o_proj", 4, 12)
DOWN: Dense = ("mlp.down_proj", 48, 1)
LINEAR: Dense = ("linear_attn.out_proj", 4, 8)
W2: Dense = ("feed_forward.w2", 48, 1)
MAMBA: Dense = ("mamba.out_proj", 4, 16)
OUT_PROJ: Dense = ("self_attn.out_proj", 4, 8)
QWEN2: Mixture = ("mlp.experts", (4, 24, 20), "mlp.shared_expert.down_proj")
DEEPSEEK: Mixture = ("mlp.experts", (4, 24, 24), "mlp.shared_experts.down_proj")
GRANITE: Mixture = ("block_sparse_moe.experts", (4, 48, 20), "shared_mlp.output_linear")
LLAMA4: Mixture = ("feed_forward.experts", (4, 48, 48), "feed_forward.shared_expert.down_proj")

EXPECTED: dict[str, list[tuple[Dense | None, Dense | Mixture]]] = {
    "qwen3_moe": [(O_PROJ_12, ("mlp.experts", (4, 24, 0), None))] * 3,
    "qwen2_moe": [(O_PROJ, DOWN), (O_PROJ, QWEN2), (O_PROJ, QWEN2)],
    "mixtral": [(O_PROJ, ("mlp.experts", (4, 48, 0), None))] * 3,
    "olmoe": [(O_PROJ, ("mlp.experts", (4, 48, 0), None))] * 3,
    "gpt_oss": [(O_PROJ, ("mlp.experts", (4, 48, 0), None))] * 3,
    "deepseek_v3": [(O_PROJ_12, DOWN), (O_PROJ_12, DEEPSEEK), (O_PROJ_12, DEEPSEEK)],
    "glm4_moe": [(O_PROJ, DOWN), (O_PROJ, DEEPSEEK), (O_PROJ, DEEPSEEK)],
    "granitemoe": [(O_PROJ, ("block_sparse_moe.experts", (4, 48, 0), None))] * 3,
    "granitemoeshared": [(O_PROJ, GRANITE)] * 3,
    "llama4_text": [(O_PROJ, ("feed_forward.down_proj", 40, 1)), (O_PROJ, LLAMA4), (O_PROJ, LLAMA4)],
    "qwen3_next": [(LINEAR, QWEN2), (O_PROJ, QWEN2), (LINEAR, QWEN2)],
    "lfm2": [(None, W2), (OUT_PROJ, W2), (None, W2)],
    "lfm2_moe": [
        (None, W2),
        (OUT_PROJ, ("feed_forward.experts", (4, 24, 0), None)),
        (None, ("feed_forward.experts", (4, 24, 0), None)),
    ],
    "granitemoehybrid": [(MAMBA, GRANITE), (O_PROJ, GRANITE), (MAMBA, GRANITE)],
    "falcon_h1": [(O_PROJ, ("feed_forward.down_proj", 48, 1))] * 3,
    "gemma3": [(("self_attn.o_proj", 4, 16), DOWN)] * 3,
    "llava": [(O_PROJ, DOWN)] * 3,
    "mistral3": [(O_PROJ, DOWN)] * 3,
    "qwen2_5_vl": [(O_PROJ, DOWN)] * 3,
    "qwen3_vl": [(O_PROJ_12, DOWN)] * 3,
    "qwen3_vl_moe": [(O_PROJ_12, ("mlp.experts", (4, 24, 0), None))] * 3,
}  # fmt: skip
TRANSPOSED = ("gpt_oss", "llama4_text")
LEFT_OUT = {
    "lfm2": ("model.layers.0.conv.out_proj", "model.layers.2.conv.out_proj"),
    "lfm2_moe": ("model.layers.0.conv.out_proj", "model.layers.2.conv.out_proj"),
    "falcon_h1": tuple(f"model.layers.{i}.mamba.out_proj" for i in range(3)),
}


def layer_prefix(family: str) -> str:
    return "model.language_model.layers" if family in MULTIMODAL else "model.layers"


@pytest.mark.parametrize("family", EXPECTED)
def test_sites_projections_and_components(family: str) -> None:
    model = tiny_model(family)
    sites = iter(model.sites.items())
    for layer, (mixer, mlp) in enumerate(EXPECTED[family]):
        prefix = f"{layer_prefix(family)}.{layer}"
        if mixer is not None:
            block = "ssm" if mixer == MAMBA else "attn"
            check_dense(model, *next(sites), Site(layer, block), prefix, mixer)
        site, module = next(sites)
        if isinstance(mlp[1], int):
            check_dense(model, site, module, Site(layer, "mlp"), prefix, mlp)
        else:
            assert site == Site(layer, "mlp")
            check_mixture(model, module, prefix, mlp, family in TRANSPOSED)
    assert next(sites, None) is None
    keys = [p.key for module in model.sites.values() for p in module.projections]
    assert len(keys) == len(set(keys))


def check_dense(model: LanguageModel, site: Site, module: SiteModule, wanted: Site, prefix: str, dense: Any) -> None:
    name, components, width = dense
    assert site == wanted
    assert module.name == module.only.key == f"{prefix}.{name}"
    assert module.only.parameter_name == f"{prefix}.{name}.weight"
    assert module.experts is None
    assert module.sizes is None
    assert (module.component_count, module.component_width) == (components, width)
    assert module.shape == (32, components * width)
    assert module.weight.data_ptr() == model.network.get_parameter(f"{prefix}.{name}.weight").data_ptr()


def check_mixture(model: LanguageModel, module: SiteModule, prefix: str, mixture: Any, transposed: bool) -> None:
    name, (count, width, shared), shared_name = mixture
    sizes = Experts(count, width, shared)
    assert module.name == f"{prefix}.{name}"
    assert module.sizes == sizes
    assert module.shape == (32, sizes.neurons)
    assert (module.component_count, module.component_width) == (sizes.neurons, 1)
    down = model.network.get_parameter(f"{prefix}.{name}.down_proj")
    assert down.shape == ((count, width, 32) if transposed else (count, 32, width))
    assert len(module.routed) == count
    for e, projection in enumerate(module.routed):
        assert projection.key == f"{prefix}.{name}.down_proj[{e}]"
        assert projection.parameter_name == f"{prefix}.{name}.down_proj"
        assert (projection.expert, projection.transposed) == (e, transposed)
        assert projection.columns == slice(e * width, (e + 1) * width)
        assert projection.shape == (32, width)
        assert torch.equal(projection.weight, down[e].T if transposed else down[e])
        assert projection.weight.data_ptr() == down[e].data_ptr()  # a view: writing to it edits the model
    assert bool(module.plain) == bool(shared)
    for projection in module.plain:
        assert projection.key == f"{prefix}.{shared_name}"
        assert projection.columns == slice(count * width, sizes.neurons)
        assert projection.shape == (32, shared)
        assert projection.expert is None
        assert str(module.component(count * width + 3)) == f"L{module.site.layer}.shared.N3"
    assert module.component(width + 2) == Component(module.site, width + 2)
    assert str(module.component(width + 2)) == f"L{module.site.layer}.E1.N2"


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_what_is_left_out_is_listed(family: str) -> None:
    model = tiny_model(family)
    assert tuple(model.structure.left_out) == LEFT_OUT.get(family, ())
    named = {p.name for module in model.sites.values() for p in module.projections}
    assert not named & set(model.structure.left_out)
    for name in model.structure.left_out:
        assert isinstance(model.network.get_submodule(name), nn.Linear)


@pytest.mark.parametrize("family", MULTIMODAL)
def test_nothing_of_the_vision_tower_is_a_site(family: str) -> None:
    model = tiny_model(family)
    language = set(model.network.get_submodule("model.language_model").modules())
    others = {module for module in model.network.modules() if module not in language}
    assert any(isinstance(module, nn.Linear) for module in others)  # there is a tower
    for site in model.sites.values():
        assert all(projection.module in language for projection in site.projections)
    assert len(model.layers) == 3
    assert all(layer in language for layer in model.layers)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_skeleton_has_the_loaded_models_sites(family: str, tmp_path: Path) -> None:
    network = tiny_network(family)
    network.config.save_pretrained(tmp_path)
    skeleton, model = load_skeleton(str(tmp_path)), LanguageModel(network)
    assert list(skeleton.sites) == list(model.sites)
    assert skeleton.structure.left_out == model.structure.left_out
    for site, module in model.sites.items():
        other = skeleton.sites[site]
        assert (other.name, other.shape, other.component_width) == (module.name, module.shape, module.component_width)
        assert other.sizes == module.sizes
        assert [describe(p) for p in other.projections] == [describe(p) for p in module.projections]
    assert all(parameter.is_meta for parameter in skeleton.network.parameters())


def describe(projection: Any) -> tuple[object, ...]:
    p = projection
    return p.key, p.parameter_name, p.columns, p.shape, p.expert, p.transposed


class TestHeadsOfMixers:
    """A parameter of one head changes that head's columns of the projection's input, and no others."""

    def inputs(self, network: nn.Module, name: str) -> Tensor:
        seen: list[Tensor] = []
        handle = network.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        with torch.inference_mode():
            network(input_ids=IDS)
        handle.remove()
        return seen[0].flatten(0, -2)

    @pytest.mark.parametrize("head", range(4))
    def test_linear_attention(self, head: int) -> None:
        network = tiny_network("qwen3_next")
        site = LanguageModel(network).sites[Site(0, "attn")]
        before = self.inputs(network, site.name)
        with torch.no_grad():
            network.model.layers[0].linear_attn.A_log[head] += 1.5
        changed = ((self.inputs(network, site.name) - before).abs() > 1e-7).any(dim=0)
        own = torch.arange(32) // site.component_width == head
        assert torch.equal(changed, own)

    @pytest.mark.parametrize("head", range(4))
    def test_mamba(self, head: int) -> None:
        """All of a token's columns share one norm, which changes too: the others keep their proportions."""
        network = tiny_network("granitemoehybrid")
        site = LanguageModel(network).sites[Site(0, "ssm")]
        assert site.component(head) == Component(Site(0, "ssm"), head)
        before = self.inputs(network, site.name).double()
        with torch.no_grad():
            network.model.layers[0].mamba.D[head] += 1.5
        ratio = self.inputs(network, site.name).double() / before
        own = torch.arange(64) // site.component_width == head
        factor = ratio[:, ~own].median(dim=1, keepdim=True).values
        off = ((ratio / factor - 1).abs() > 1e-3).double().mean(dim=0)
        assert off[own].min() > 0.5
        assert off[~own].max() == 0


class TestGranite:
    def test_without_experts_its_shared_mlp_is_a_dense_site(self) -> None:
        model = tiny_model("granitemoehybrid", num_local_experts=0, num_experts_per_tok=0)
        for layer in range(3):
            site = model.sites[Site(layer, "mlp")]
            assert site.experts is None
            assert (site.name, site.shape) == (f"model.layers.{layer}.shared_mlp.output_linear", (32, 20))

    def test_without_a_shared_mlp(self) -> None:
        model = tiny_model("granitemoeshared", shared_intermediate_size=0)
        assert all(not model.sites[Site(layer, "mlp")].plain for layer in range(3))


def test_a_mixture_type_with_only_dense_layers_is_dense() -> None:
    model = tiny_model("qwen3_moe", mlp_only_layers=[0, 1, 2])
    assert all(site.experts is None for site in model.sites.values())
    assert len(model.sites) == 6


class TestRefused:
    def test_experts_whose_outputs_are_normed(self) -> None:
        network = tiny_network("qwen3_moe")
        network.model.layers[1].mlp.experts.has_post_expert_norm = True
        with pytest.raises(LayoutError, match=r"L1\.mlp: each expert's output passes through a norm"):
            LanguageModel(network, layout=Layout.from_table("mine", TABLE))

    @pytest.mark.parametrize("change", ["no interface", "no down_proj", "two axes"])
    def test_experts_that_cannot_be_watched(self, change: str) -> None:
        network = tiny_network("mixtral")
        experts = network.model.layers[2].mlp.experts
        if change == "no interface":
            del experts.has_gate
        elif change == "two axes":
            experts.down_proj = nn.Parameter(torch.zeros(4, 32))
        else:
            del experts.down_proj
        with pytest.raises(
            LayoutError, match=r"L2\.mlp: model\.layers\.2\.mlp\.experts is no mixture that can be watched"
        ):
            LanguageModel(network, layout=Layout.from_table("mine", TABLE))

    def test_a_number_of_heads_that_the_config_lacks(self) -> None:
        own = Layout.from_table("mine", {**TABLE, "heads": {"self_attn.o_proj": "num_query_heads"}})
        with pytest.raises(LayoutError, match=r"L0\.attn: .* the config has num_query_heads = None"):
            LanguageModel(tiny_network("mixtral"), layout=own)


TABLE: dict[str, Any] = {
    "layers": "model.layers",
    "attn": "self_attn.o_proj",
    "experts": {"module": "mlp.experts", "outputs": ["mlp"]},
}


class TestOwnLayouts:
    def test_of_a_mixture(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(
            '[mine]\nlayers = ["model.blocks", "model.layers"]\nattn = ["self_attn.out", "self_attn.o_proj"]\n'
            'experts = { module = "mlp.experts", outputs = ["mlp"] }\n'
        )
        model = LanguageModel(tiny_network("mixtral"), layout=Layout.given(path))
        known = tiny_model("mixtral")
        assert list(model.sites) == list(known.sites)
        assert [m.name for m in model.sites.values()] == [m.name for m in known.sites.values()]

    @pytest.mark.parametrize(
        ("experts", "message"),
        [
            ({}, "experts.module: Field required; experts.outputs: Field required"),
            ({"module": "mlp.experts"}, "experts.outputs: Field required"),
            ({"module": "mlp.experts", "outputs": []}, "experts.outputs: Tuple should have at least 1 item"),
            ({"module": "mlp.experts", "outputs": "mlp"}, "experts.outputs: Input should be a valid tuple"),
            ({"module": ["mlp.experts"], "outputs": ["mlp"]}, "experts.module: Input should be a valid string"),
            ({"module": "mlp.experts", "outputs": [3]}, "experts.outputs.0: Input should be a valid string"),
            (
                {"module": "mlp.experts", "outputs": ["mlp"], "shared": True},
                "experts.shared: Input should be",
            ),
            (
                {"module": "mlp.experts", "outputs": ["mlp"], "transposed": "yes"},
                "experts.transposed: Input should be",
            ),
            (
                {"module": "mlp.experts", "outputs": ["mlp"], "scaled": True},
                "experts.scaled: Unexpected",
            ),
        ],
    )
    def test_malformed_experts(self, experts: dict[str, object], message: str) -> None:
        with pytest.raises(LayoutError, match=f"layout 'mine': {message}"):
            Layout.from_table("mine", {**TABLE, "experts": experts})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"experts": "mlp.experts"}, "experts: Input should be a dictionary"),
            ({"heads": "num_heads"}, "heads: Input should be a valid dictionary"),
            ({"heads": {"self_attn.o_proj": 4}}, "heads.self_attn.o_proj: Input should be a valid string"),
            ({"left_out": "conv"}, "left_out: Input should be a valid dictionary"),
            ({"ssm": 3}, "ssm: Input should be a valid tuple"),
            ({"layers": ["model.layers", 1]}, "layers.1: Input should be a valid string"),
        ],
    )
    def test_malformed(self, change: dict[str, object], message: str) -> None:
        with pytest.raises(LayoutError, match=f"layout 'mine': {message}"):
            Layout.from_table("mine", {**TABLE, **change})

    def test_what_the_user_leaves_out_is_listed(self) -> None:
        network = tiny_network("mixtral")
        network.model.layers[1].memory = nn.Linear(32, 32)
        layout = Layout.from_table("mine", {**TABLE, "left_out": ["memory"]})
        assert LanguageModel(network, layout=layout).structure.left_out.keys() == {"model.layers.1.memory"}
