"""The residual writers of a model that no layout describes, found by what its layers do.

In each layer that is unlike the ones before: which modules must be silent for the layer to hand the residual stream on
unchanged, which of them see earlier tokens, and which columns of their inputs belong to one head. No name decides.

Shapes: b, t = rows and tokens of the short pass, d = width of the residual stream, m = columns of a projection.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from steer2edit.core import Block
from steer2edit.errors import LayoutError
from steer2edit.models.heads import heads_of
from steer2edit.models.layers import ROWS, TOKENS, LayerRun, silenced
from steer2edit.models.layout import ExpertLayout, Layout
from steer2edit.models.site_module import is_linear, is_mixture

_NO_ADAPTER = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
"""Model types of which PEFT refuses an adapter on `out_proj`, because a fused kernel may bypass the module."""


@dataclass
class _Findings:
    """What one kind of layer has."""

    sites: dict[Block, str] = field(default_factory=dict)
    experts: ExpertLayout | None = None
    heads: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def find_layout(network: PreTrainedModel, place: str, layers: list[LayerRun]) -> Layout:
    """The layout of a model by its layers, as they ran; a LayoutError where what changes the stream is no module."""
    model_type, config = network.config.model_type, network.config.get_text_config()
    kinds = {kind_of(run.module): run for run in reversed(layers)}  # the first of each
    found = [_find(run, config, model_type) for run in layers if run is kinds[kind_of(run.module)]]
    left_out = {path: why for kind in found for path, why in kind.left_out.items()}
    dense = {kind.sites.get("mlp") for kind in found}
    sites: dict[Block, tuple[str, ...]] = {
        block: tuple(dict.fromkeys(p for f in found if (p := f.sites.get(block)) and (p not in left_out or p in dense)))
        for block in ("attn", "ssm", "mlp")
    }
    heads = {path: name for kind in found for path, name in kind.heads.items()}
    mixtures = [kind.experts for kind in found if kind.experts]
    outputs = tuple(dict.fromkeys(path for one in mixtures for path in one.outputs))
    shared = next((one.shared for one in mixtures if one.shared), None)
    return Layout(
        model_type,
        (place,),
        **sites,
        heads={p: name for p, name in heads.items() if name != "num_attention_heads" and p not in left_out},
        experts=replace(mixtures[0], outputs=outputs, shared=shared) if mixtures else None,
        left_out=left_out,
    )


def kind_of(layer: nn.Module) -> tuple[Any, ...]:
    """What makes layers alike: their modules and the shapes of their parameters."""
    return tuple((name, type(module).__name__) for name, module in layer.named_modules()) + tuple(
        (name, tuple(parameter.shape)) for name, parameter in layer.named_parameters()
    )


def _find(run: LayerRun, config: PreTrainedConfig, model_type: str) -> _Findings:
    writers = {path: run.module.get_submodule(path) for path in find_writers(run)}
    mixing = _mixers(run, writers)
    found = _Findings()
    for path, module in writers.items():
        if path not in mixing:
            continue
        owner = type(run.module.get_submodule(path.rpartition(".")[0])).__name__
        block: Block = "ssm" if re.search("mamba|ssm", f"{path} {owner}".lower()) else "attn"
        heads, why = "", "it is no linear module"
        if is_linear(module):
            heads, why = heads_of(run, path, writers.values(), config)
            if model_type in _NO_ADAPTER and path.endswith("out_proj"):
                why = "PEFT refuses an adapter on it"
            elif block in found.sites:
                why = "the layer has another mixer"
        if why:
            found.left_out[path] = why
        else:
            found.sites[block] = path
            found.heads[path] = heads
    _place_others(run, found, {p: module for p, module in writers.items() if p not in mixing}, writers)
    return found


def find_writers(run: LayerRun, known: Iterable[str] = ()) -> list[str]:
    """Paths of the modules, besides known ones, that write to the residual stream in a layer, as they are called.

    The innermost modules with a matrix of d outputs are silenced one after another, the last called first, until the
    layer is silent; then each that is not needed is taken out again, the first called first. Modules around them, or
    without such a matrix, stand in where that is not enough; a LayoutError where the layer is never silent.
    """
    d, known = run.width, set(known)
    writing = [path for path, call in run.called.items() if call.output.shape[-1:] == (d,) and path not in known]
    owners = [path for path in writing if _has_matrix(run.module.get_submodule(path), d)]
    fine = [path for path in owners if not any(other.startswith(f"{path}.") for other in owners)]
    coarse = [p for p in writing if p not in fine and any(True for _ in run.module.get_submodule(p).parameters())]

    for without_norms in (False, True):
        for candidates in (fine, [*fine, *coarse]):
            chosen = _fewest(run, candidates, known, without_norms)
            if chosen is not None:
                return chosen
    raise LayoutError(
        f"{run.name}: with every module silent the layer still changes the residual stream, so what writes to it is "
        "not a module of its own. This architecture cannot be edited."
    )


def _fewest(run: LayerRun, candidates: list[str], known: set[str], without_norms: bool) -> list[str] | None:
    def silent(paths: list[str]) -> bool:
        return run.silent(map(run.module.get_submodule, (*known, *paths)), without_norms=without_norms)

    if not silent(candidates):
        return None
    chosen: list[str] = []
    for path in reversed(candidates):
        if silent(chosen):
            break
        chosen.insert(0, path)
    for path in list(chosen):
        rest = [p for p in chosen if p != path]
        if silent(rest):
            chosen = rest
    return chosen


def _has_matrix(module: nn.Module, d: int) -> bool:
    if is_linear(module) and not isinstance(module, Conv1D):
        return bool(vars(module)["out_features"] == d)
    return any(parameter.ndim >= 2 and d in parameter.shape for parameter in module.parameters(recurse=False))


def _mixers(run: LayerRun, writers: Mapping[str, nn.Module]) -> set[str]:
    """The writers whose input depends on earlier tokens, with every writer silent."""
    changed = run.hidden.clone()
    changed[:, 0] = changed[:, 0].flip(-1) + changed[:, 1]
    before, after = (run.calls(silenced(writers.values()), hidden) for hidden in (None, changed))
    found = set()
    for path in writers.keys() & before.keys() & after.keys():
        x, y = before[path].input, after[path].input
        if x.shape == y.shape and x.numel() // x.shape[-1] == ROWS * TOKENS:
            x, y = (value.reshape(ROWS, TOKENS, -1)[:, 1:] for value in (x, y))
            if not torch.equal(x, y):
                found.add(path)
    return found


def _place_others(
    run: LayerRun, found: _Findings, others: Mapping[str, nn.Module], writers: Mapping[str, nn.Module]
) -> None:
    """The writers that see one token alone: the experts with a shared one, or the widest MLP; the rest is left out."""
    mixtures = [path for path, module in others.items() if is_mixture(module)]
    dense = [path for path, module in others.items() if path not in mixtures and is_linear(module)]
    for path in others:
        if path not in (*mixtures, *dense):
            found.left_out[path] = "it is neither a linear module nor a mixture of experts that can be watched"
    for path in mixtures:
        why = _unwatched(run, path) or ("the layer has another mixture" if found.experts else "")
        if why:
            found.left_out[path] = why
        else:
            scaled = not hasattr(others[path], "has_gate")
            # the first dense writer whose output is added to theirs as it is
            shared = next((p for p in dense if not _own_norm(run, others[path], writers[p], writers.values())), None)
            outputs = tuple(dict.fromkeys(_output_of(run, p, writers) for p in (path, shared) if p))
            transposed = scaled or bool(getattr(others[path], "is_transposed", False))
            found.experts = ExpertLayout(path, outputs, shared, transposed, scaled)
    for path in dense:
        if found.experts:
            if path != found.experts.shared:
                found.left_out[path] = "it is not added to the experts' sum as it is"
        elif "mlp" in found.sites:
            found.left_out[path] = "the layer has another MLP"
        else:
            found.sites["mlp"] = path


def _unwatched(run: LayerRun, path: str) -> str:
    """Why the experts of a mixture cannot be watched; empty if they can."""
    module, given = run.module.get_submodule(path), run.called[path].input
    if getattr(module, "has_post_expert_norm", False):
        return "each expert's output passes through a norm before it is added"
    if hasattr(module, "has_gate"):
        return ""
    watched = given.numel() // given.shape[-1] == module.get_parameter("down_proj").shape[0] * ROWS * TOKENS
    return "" if watched else "its experts do not run through transformers' experts interface"


def _own_norm(run: LayerRun, experts: nn.Module, dense: nn.Module, writers: Iterable[nn.Module]) -> bool:
    """Whether the experts' sum passes through a norm before the dense output is added: then its size is nothing."""
    one, other = (
        run.output({**silenced(writers), experts: partial(_fixed, factor, 0), dense: partial(_fixed, 1.0, 1)})
        - run.hidden
        for factor in (1.0, 1000.0)
    )
    return bool(torch.allclose(one, other, rtol=1e-2, atol=1e-2 * float(one.abs().max())))


def _fixed(factor: float, seed: int, output: Tensor) -> Tensor:
    """A fixed output, whatever the input is."""
    row = torch.randn(output.shape[-1], generator=torch.Generator().manual_seed(seed))
    return (factor * row).to(output).expand_as(output).clone()


def _output_of(run: LayerRun, path: str, writers: Mapping[str, nn.Module]) -> str:
    """The outermost module around a writer that puts out nothing when all writers are silent, and d columns."""
    parts = path.split(".")
    around = [name for i in range(1, len(parts)) if (name := ".".join(parts[:i])) in run.called]
    calls = run.calls(silenced(writers.values()))
    outputs = {name: calls[name].output for name in around if name in calls}
    return next((n for n, y in outputs.items() if y.shape[-1] == run.width and not y.any()), path)
