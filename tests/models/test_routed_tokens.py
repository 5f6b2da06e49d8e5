"""What passes through a mixture's experts: the tokens that are delivered are those the experts' output is made of."""

import copy

import pytest
import torch
from torch import Tensor, nn

from families import MIXTURES, tiny_model, tiny_network
from steer2edit.models import LanguageModel, SiteModule
from steer2edit.models.hooks import RoutedTokens, routed_tokens

IDS = torch.arange(3, 3 + 24).view(2, 12)
THROUGH_INTERFACE = [family for family in MIXTURES if family != "llama4_text"]


def mixtures(model: LanguageModel) -> list[SiteModule]:
    return [site for site in model.sites.values() if site.experts is not None]


def logits(model: LanguageModel) -> Tensor:
    with torch.inference_mode():
        return model.network(input_ids=IDS).logits


def watched(model: LanguageModel, site: SiteModule) -> tuple[RoutedTokens, Tensor, Tensor]:
    """What a forward pass delivers, the output that is delivered, and the experts' output without anyone watching."""
    assert site.experts is not None
    seen: list[tuple[RoutedTokens, Tensor]] = []
    own: list[Tensor] = []
    handle = site.experts.module.register_forward_hook(lambda _, inputs, output: own.append(output.clone()))
    logits(model)
    handle.remove()

    def update(routed: RoutedTokens, output: Tensor) -> Tensor:
        seen.append((routed, output.clone()))
        return output

    with routed_tokens(site.experts, update):
        logits(model)
    ((routed, output),) = seen
    return routed, output, own[0]


def by_hand(module: nn.Module, routed: RoutedTokens, rows: int) -> Tensor:
    """Σ over the delivered pairs of weight · (W_e x + b_e), one pair after another, in float64."""
    down = module.down_proj.double()
    transposed = down.shape[1] == routed.inputs.shape[1]
    total = torch.zeros(rows, down.shape[1 + transposed], dtype=torch.float64)
    for x, e, row, weight in zip(routed.inputs, routed.expert, routed.row, routed.weight, strict=True):
        y = x.double() @ down[e] if transposed else down[e] @ x.double()
        if hasattr(module, "down_proj_bias"):
            y = y + module.down_proj_bias[e].double()
        total[row] += weight.double() * y
    return total


@pytest.mark.parametrize(
    ("family", "implementation"),
    [
        *((family, "grouped_mm") for family in MIXTURES),
        *((family, other) for family in ("qwen2_moe", "gpt_oss", "granitemoe") for other in ("batched_mm", "eager")),
    ],
)
def test_what_is_delivered_makes_up_the_experts_output(family: str, implementation: str) -> None:
    model = tiny_model(family)
    if family in THROUGH_INTERFACE:
        model.network.set_experts_implementation(implementation)
    for site in mixtures(model):
        assert site.experts is not None
        routed, output, own = watched(model, site)
        flat = own.reshape(-1, own.shape[-1]).double()
        with torch.no_grad():
            wanted = by_hand(site.experts.module, routed, len(flat))
        assert float((wanted - flat).norm() / flat.norm()) < 1e-5
        assert float((output.reshape(flat.shape).double() - flat).norm() / flat.norm()) < 1e-5
        assert routed.tokens == IDS.numel()
        pairs = list(zip(routed.token.tolist(), routed.expert.tolist(), strict=True))
        assert len(pairs) == len(set(pairs))  # no pair is delivered twice
        assert set(routed.token.tolist()) == set(range(IDS.numel()))  # and every token is
        per_token = torch.bincount(routed.token)
        assert per_token.unique().tolist() == [1 if family == "llama4_text" else 2]


@pytest.mark.parametrize("family", MIXTURES)
def test_watching_changes_no_bit(family: str) -> None:
    model = tiny_model(family)
    implementations = ["grouped_mm", "batched_mm"] if family in THROUGH_INTERFACE else [None]
    for implementation in implementations:
        if implementation:
            model.network.set_experts_implementation(implementation)
        base = logits(model)
        for site in mixtures(model):
            assert site.experts is not None
            with routed_tokens(site.experts, lambda routed, output: output):
                assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), base)


def state(model: LanguageModel) -> dict[str, object]:
    """Everything on configs and modules that watching could leave behind."""
    configs = {id(m.config): m.config for m in model.network.modules() if hasattr(m, "config")}
    found: dict[str, object] = {f"config {i}": copy.deepcopy(vars(c)) for i, c in enumerate(configs.values())}
    found["json"] = model.network.config.to_json_string(use_diff=False)
    for name, module in model.network.named_modules():
        found[f"attributes {name}"] = sorted(vars(module))
        found[f"hooks {name}"] = (len(module._forward_hooks), len(module._forward_pre_hooks))
    found["weights"] = {n: p.detach().numpy().tobytes() for n, p in model.network.named_parameters()}
    return found


@pytest.mark.parametrize("family", MIXTURES)
def test_config_and_modules_are_as_before(family: str) -> None:
    model = tiny_model(family)
    before = state(model)
    first, *_, last = [site.experts for site in mixtures(model)]
    assert first is not None
    assert last is not None
    with (
        routed_tokens(first, lambda r, y: y),
        routed_tokens(last, lambda r, y: y),
        routed_tokens(first, lambda r, y: y),
    ):
        logits(model)
    assert state(model) == before
    with pytest.raises(RuntimeError, match="in the body"), routed_tokens(first, lambda r, y: y):
        raise RuntimeError("in the body")
    assert state(model) == before

    def fail(routed: RoutedTokens, output: Tensor) -> Tensor:
        raise RuntimeError("in the forward pass")

    with (
        pytest.raises(RuntimeError, match="in the forward pass"),
        routed_tokens(last, lambda r, y: y),
        routed_tokens(first, fail),
    ):
        logits(model)
    assert state(model) == before


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "eager"])
def test_the_implementation_that_was_configured_comes_back(implementation: str) -> None:
    model = tiny_model("qwen3_moe")
    model.network.set_experts_implementation(implementation)
    base, before = logits(model), state(model)
    for site in mixtures(model):
        assert site.experts is not None
        with routed_tokens(site.experts, lambda routed, output: output):
            logits(model)
    assert state(model) == before
    assert model.network.get_experts_implementation()[""] == implementation
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("family", ["mixtral", "llama4_text"])
def test_updates_apply_one_after_another_to_their_own_block_alone(family: str) -> None:
    model = tiny_model(family)
    first, last = (site.experts for site in (mixtures(model)[0], mixtures(model)[-1]))
    assert first is not None
    assert last is not None
    seen: list[Tensor] = []

    def see(_: nn.Module, inputs: object, output: Tensor) -> None:
        seen.append(output.clone())

    with last.module.register_forward_hook(see):
        logits(model)
    with (
        routed_tokens(last, lambda r, y: y + 1),
        routed_tokens(last, lambda r, y: 3 * y),
        last.module.register_forward_hook(see),
    ):
        logits(model)
    plain, changed = seen
    assert torch.allclose(changed, 3 * (plain + 1))
    with routed_tokens(first, lambda r, y: torch.zeros_like(y)):
        without_first = logits(model)
    network = tiny_network(family)
    experts = network.get_submodule(mixtures(model)[0].name)
    with torch.no_grad():
        experts.down_proj.zero_()
    assert torch.allclose(without_first, logits(LanguageModel(network)), atol=1e-5)
