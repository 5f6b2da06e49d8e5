"""The residual writers of a model that no layout describes, found by what its layers do.

In each layer that is unlike the ones before: which modules must be silent for the layer to hand the residual stream on
unchanged, which of them see earlier tokens, and which columns of their inputs belong to one head. No name decides.

Shapes: b, t = rows and tokens of the short pass, d = width of the residual stream, m = columns of a projection.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from steer2edit.errors import LayoutError
from steer2edit.models.decoder_layers import LayerRuns
from steer2edit.models.heads import heads_of
from steer2edit.models.layer_runs import ROWS, TOKENS, LayerRun, silenced
from steer2edit.models.layout import ExpertLayout, Layout
from steer2edit.models.site_module import is_linear

_NO_ADAPTER = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
"""Model types of which PEFT refuses an adapter on `out_proj`, because a fused kernel may bypass the module."""


@dataclass
class _Findings:
    """What one kind of layer has."""

    attn: str | None = None
    ssm: str | None = None
    mlp: str | None = None
    experts: ExpertLayout | None = None
    heads: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def find_layout(network: PreTrainedModel, layers: LayerRuns) -> Layout:
    """The layout of a model.

    Args:
        network: the model.
        layers: its layers, as they ran.

    Raises:
        LayoutError: something changes the residual stream that is no module.
    """
    config = network.config.get_text_config()
    kinds: dict[Any, _Findings] = {}
    for run in layers.runs:
        kind = kind_of(run.module)
        if kind not in kinds:
            kinds[kind] = _find(run, config, network.config.model_type)
    return _merged(network.config.model_type, layers.path, list(kinds.values()))


def kind_of(layer: nn.Module) -> tuple[Any, ...]:
    """What makes layers alike: their modules and the shapes of their parameters."""
    return tuple((name, type(module).__name__) for name, module in layer.named_modules()) + tuple(
        (name, tuple(parameter.shape)) for name, parameter in layer.named_parameters()
    )


def _find(run: LayerRun, config: PreTrainedConfig, model_type: str) -> _Findings:
    writers = find_writers(run)
    modules = {path: run.module.get_submodule(path) for path in writers}
    mixing = mixers(run, modules.values())
    found = _Findings()
    others = []
    for path, module in modules.items():
        if module not in mixing:
            others.append(path)
            continue
        block = "ssm" if re.search("mamba|ssm", f"{path} {_owner(run, path)}".lower()) else "attn"
        heads, why = "", "it is no linear module"
        if is_linear(module):
            heads, why = heads_of(run, path, module, modules.values(), config)
            why = _refused(found, block, path, model_type) or why
        if why:
            found.left_out[path] = why
        else:
            setattr(found, block, path)
            found.heads[path] = heads
    _place_others(run, found, others, modules)
    return found


def _refused(found: _Findings, block: str, path: str, model_type: str) -> str:
    if model_type in _NO_ADAPTER and path.endswith("out_proj"):
        return "PEFT refuses an adapter on it"
    return "the layer has another mixer" if getattr(found, block) else ""


def find_writers(run: LayerRun, known: Iterable[str] = ()) -> list[str]:
    """Paths of the modules that write to the residual stream in a layer, in the order they are called.

    The innermost modules with a matrix of d outputs are silenced one after another, the last called first, until the
    layer is silent; then each that is not needed is taken out again, the first called first. Modules around them, or
    without such a matrix, stand in where that is not enough.

    Args:
        run: the layer.
        known: paths that are silenced anyway, and not returned.

    Raises:
        LayoutError: the layer is never silent.
    """
    d = run.width
    given = [run.module.get_submodule(path) for path in known]
    writing = [path for path, output in run.called.items() if output.shape[-1:] == (d,) and path not in set(known)]
    owners = [path for path in writing if _has_matrix(run.module.get_submodule(path), d)]
    fine = [path for path in owners if not any(other.startswith(f"{path}.") for other in owners)]
    coarse = [
        path for path in writing if path not in fine and any(True for _ in run.module.get_submodule(path).parameters())
    ]
    for without_norms in (False, True):
        for candidates in (fine, [*fine, *coarse]):
            chosen = _greedy(run, candidates, given, without_norms=without_norms)
            if chosen is not None:
                return chosen
    raise LayoutError(
        f"{run.name}: with every module silent the layer still changes the residual stream, so what writes to it is "
        "not a module of its own. This architecture cannot be edited."
    )


def _greedy(run: LayerRun, candidates: list[str], given: list[nn.Module], *, without_norms: bool) -> list[str] | None:
    modules = {path: run.module.get_submodule(path) for path in candidates}
    if not run.silent([*given, *modules.values()], without_norms=without_norms):
        return None
    chosen: list[str] = []
    for path in reversed(candidates):
        if run.silent([*given, *(modules[p] for p in chosen)], without_norms=without_norms):
            break
        chosen.insert(0, path)
    for path in list(chosen):
        rest = [p for p in chosen if p != path]
        if run.silent([*given, *(modules[p] for p in rest)], without_norms=without_norms):
            chosen = rest
    return chosen


def _has_matrix(module: nn.Module, d: int) -> bool:
    if is_linear(module) and not isinstance(module, Conv1D):
        return bool(vars(module)["out_features"] == d)
    return any(parameter.ndim >= 2 and d in parameter.shape for parameter in module.parameters(recurse=False))


def mixers(run: LayerRun, writers: Iterable[nn.Module]) -> set[nn.Module]:
    """The writers whose input depends on earlier tokens, with every writer silent."""
    writers = list(writers)
    changed = run.hidden.clone()
    changed[:, 0] = changed[:, 0].flip(-1) + changed[:, 1]
    before, after = (run.inputs(writers, silenced(writers), hidden) for hidden in (None, changed))
    found = set()
    for module, x in before.items():
        y = after.get(module)
        if y is None or x.shape != y.shape or x.numel() // x.shape[-1] != ROWS * TOKENS:
            continue
        x, y = (value.reshape(ROWS, TOKENS, -1)[:, 1:] for value in (x, y))
        if not torch.equal(x, y):
            found.add(module)
    return found


def _owner(run: LayerRun, path: str) -> str:
    return type(run.module.get_submodule(path.rpartition(".")[0])).__name__


def _place_others(run: LayerRun, found: _Findings, paths: list[str], modules: Mapping[str, nn.Module]) -> None:
    """The writers that see one token alone: the experts with a shared one, or the widest MLP; the rest is left out."""
    mixtures = [path for path in paths if is_mixture(modules[path])]
    dense = [path for path in paths if path not in mixtures and is_linear(modules[path])]
    for path in paths:
        if path not in (*mixtures, *dense):
            found.left_out[path] = "it is neither a linear module nor a mixture of experts that can be watched"
    for path in mixtures:
        why = _unwatched(run, path, modules[path]) or ("the layer has another mixture" if found.experts else "")
        if why:
            found.left_out[path] = why
        else:
            _place_experts(run, found, path, dense, modules)
    for path in dense:
        if found.experts:
            if path != found.experts.shared:
                found.left_out[path] = "it is not added to the experts' sum as it is"
        elif found.mlp is None:
            found.mlp = path
        else:
            found.left_out[path] = "the layer has another MLP"


def _place_experts(
    run: LayerRun, found: _Findings, path: str, dense: list[str], modules: Mapping[str, nn.Module]
) -> None:
    """The experts as the layer's MLP, with the first dense writer whose output is added to theirs as it is."""
    module = modules[path]
    shared = next((p for p in dense if not _own_norm(run, module, modules[p], modules.values())), None)
    outputs = tuple(dict.fromkeys(_output_of(run, p, modules) for p in (path, shared) if p))
    scaled = not hasattr(module, "has_gate")
    transposed = scaled or bool(getattr(module, "is_transposed", False))
    found.experts = ExpertLayout(path, outputs, shared, transposed, scaled)


def is_mixture(module: nn.Module) -> bool:
    """Whether a module holds the fused down-projections of experts."""
    down = dict(module.named_parameters(recurse=False)).get("down_proj")
    return down is not None and down.ndim == 3


def _unwatched(run: LayerRun, path: str, module: nn.Module) -> str:
    if getattr(module, "has_post_expert_norm", False):
        return "each expert's output passes through a norm before it is added"
    if hasattr(module, "has_gate"):
        return ""
    experts = module.get_parameter("down_proj").shape[0]
    given = run.inputs([module])[module]
    rows = given.numel() // given.shape[-1]
    return "" if rows == experts * ROWS * TOKENS else "its experts do not run through transformers' experts interface"


def _own_norm(run: LayerRun, experts: nn.Module, dense: nn.Module, writers: Iterable[nn.Module]) -> bool:
    """Whether the experts' sum passes through a norm before the dense output is added: then its size is nothing."""
    outputs = []
    for factor in (1.0, 1000.0):
        changes: dict[nn.Module, Any] = {**silenced(writers), experts: _Fixed(factor, 0), dense: _Fixed(1.0, 1)}
        outputs.append(run.output(changes) - run.hidden)
    one, other = outputs
    return bool(torch.allclose(one, other, rtol=1e-2, atol=1e-2 * float(one.abs().max())))


@dataclass(frozen=True)
class _Fixed:
    """A fixed output, whatever the input is."""

    factor: float
    seed: int

    def __call__(self, output: Tensor) -> Tensor:
        row = torch.randn(output.shape[-1], generator=torch.Generator().manual_seed(self.seed))
        return (self.factor * row).to(output).expand_as(output).clone()


@dataclass(frozen=True)
class _Kept:
    """Takes an output without changing it."""

    name: str
    into: dict[str, Tensor]

    def __call__(self, output: Tensor) -> Tensor:
        self.into[self.name] = output.clone()
        return output


def _output_of(run: LayerRun, path: str, modules: Mapping[str, nn.Module]) -> str:
    """The outermost module around a writer that puts out nothing when all writers are silent, and d columns."""
    parts = path.split(".")
    around = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
    outputs: dict[str, Tensor] = {}
    d = run.width
    watched = {
        run.module.get_submodule(name): _Kept(name, outputs) for name in around if name in run.called and name != path
    }
    run.output({**silenced(modules.values()), **watched})
    quiet = [name for name in around if name in outputs and outputs[name].shape[-1] == d and not outputs[name].any()]
    return quiet[0] if quiet else path


def _merged(name: str, path: str, kinds: list[_Findings]) -> Layout:
    left_out = {p: why for kind in kinds for p, why in kind.left_out.items()}
    with_experts = [kind.experts for kind in kinds if kind.experts]
    dense = {kind.mlp for kind in kinds if kind.mlp}
    sites = {}
    for block in ("attn", "ssm", "mlp"):
        own = [getattr(kind, block) for kind in kinds if getattr(kind, block)]
        sites[block] = tuple(dict.fromkeys(p for p in own if p not in left_out or p in dense))
    counted = {p: attribute for kind in kinds for p, attribute in kind.heads.items()}
    heads = {p: name for p, name in counted.items() if name != "num_attention_heads" and p not in left_out}
    experts = None
    if with_experts:
        outputs = tuple(dict.fromkeys(p for one in with_experts for p in one.outputs))
        shared = next((one.shared for one in with_experts if one.shared), None)
        experts = ExpertLayout(
            with_experts[0].module, outputs, shared, with_experts[0].transposed, with_experts[0].scaled_inputs
        )
    return Layout(
        name, (path,), heads=heads, experts=experts, left_out=tuple(left_out),
        reasons=left_out, **sites,
    )  # fmt: skip
