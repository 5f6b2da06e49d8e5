"""The sites of a model: its modules matched against the layouts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from steer2edit.core import BLOCKS, Experts, Site
from steer2edit.errors import LayoutError
from steer2edit.models.layout import ExpertLayout, Layout, known_layouts
from steer2edit.models.site_module import ExpertBlock, Projection, SiteModule

_FUSED = "down_proj"


@dataclass(frozen=True)
class ModelSites:
    """Where a model can be edited: the layout that fits it, and what it says of this model.

    Args:
        layout: that covers every matrix of every layer.
        path: of the list of decoder layers.
        layers: the decoder layers.
        sites: the projections that can be edited, in order.
        left_out: names of the modules that write to the residual stream but have no heads or neurons.
    """

    layout: Layout
    path: str
    layers: nn.ModuleList
    sites: dict[Site, SiteModule]
    left_out: tuple[str, ...]


def find_sites(model: PreTrainedModel, layout: Layout | None = None) -> ModelSites:
    """The sites of a model, by the layout that covers every matrix of every layer.

    A model type that no layout names is accepted if one layout fits its layers completely.

    Args:
        model: a causal language model, or a multimodal one with a language model in it.
        layout: the user's own, instead of the known ones.

    Raises:
        LayoutError: no layout fits; the message lists what was and what was not matched.
    """
    config = model.config.get_text_config()
    problems = []
    for candidate in (layout,) if layout else _candidates(config.model_type):
        found = [(path, module) for path in candidate.layers if _is_layers(module := _submodule(model, path))]
        if not found:
            where = " or ".join(map(repr, candidate.layers))
            problems.append(f"layout {candidate.name!r}: there is no list of layers at {where}")
            continue
        path, layers = found[0]
        assert isinstance(layers, nn.ModuleList)
        if not (gaps := _gaps(candidate, layers)):
            named = [(f"{path}.{index}", index, layer) for index, layer in enumerate(layers)]
            sites = [site for where in named for site in _layer_sites(candidate, *where, config)]
            left_out = [f"{prefix}.{p}" for prefix, _, layer in named for p in candidate.left_out if _has(layer, p)]
            return ModelSites(candidate, path, layers, {site.site: site for site in sites}, tuple(left_out))
        problems.append(f"layout {candidate.name!r}: {gaps}")
    tried = "\n  ".join(problems)
    raise LayoutError(
        f"no layout covers every residual writer of the model type {model.config.model_type!r}:\n  {tried}\n"
        "Describe the model in a layout file and pass it with --layout FILE (docs/add-a-model.md)."
    )


def _candidates(model_type: str) -> tuple[Layout, ...]:
    exact = tuple(layout for layout in known_layouts() if model_type in layout.model_types)
    return exact or known_layouts()


def _is_layers(module: nn.Module | None) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) > 0


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    module: Any = model
    for name in path.split("."):
        module = getattr(module, name, None)
    return module if isinstance(module, nn.Module) else None


def _has(layer: nn.Module, path: str) -> bool:
    return _submodule(layer, path) is not None


def _gaps(layout: Layout, layers: nn.ModuleList) -> str:
    """What the first layer that the layout does not cover lacks, and what it has more; empty if there is none."""
    for index, layer in enumerate(layers):
        matrices = _matrix_owners(layer)
        matched = [path for block in BLOCKS for path in layout.paths(block) if path in matrices]
        experts = layout.experts
        if experts and experts.module in matrices:
            matched.append(experts.module)
        missing = _missing(layout, matrices)
        unnamed = [name for name in matrices if name not in layout.named]
        if missing or unnamed:
            return (
                f"layer {index}: matched {', '.join(matched) or 'nothing'}; "
                f"missing {', '.join(missing) or 'nothing'}; not matched {', '.join(unnamed) or 'nothing'}"
            )
    return ""


def _missing(layout: Layout, matrices: list[str]) -> list[str]:
    """A layer needs something that mixes tokens and something that does not."""
    mixers = (*layout.attn, *layout.ssm, *layout.left_out)
    others = (*layout.mlp, *([layout.experts.module] if layout.experts else []))
    return [" or ".join(paths) for paths in (mixers, others) if not set(paths) & set(matrices)]


def _matrix_owners(layer: nn.Module) -> list[str]:
    """Names of the modules in a layer that own a parameter with two or more axes; its own parameters by name."""
    owners = [
        name if name else parameter_name
        for name, module in layer.named_modules()
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim >= 2
    ]
    return list(dict.fromkeys(owners))


def _layer_sites(
    layout: Layout, prefix: str, index: int, layer: nn.Module, config: PreTrainedConfig
) -> Iterator[SiteModule]:
    for block in BLOCKS:
        site, experts = Site(index, block), layout.experts
        if block == "mlp" and experts and (module := _submodule(layer, experts.module)) is not None:
            yield _expert_site(site, prefix, layer, module, experts)
        elif path := next((p for p in layout.paths(block) if _has(layer, p)), None):
            projection = _dense(f"{prefix}.{path}", layer.get_submodule(path))
            width = _width(site, projection, layout.heads.get(path, "num_attention_heads"), config)
            yield SiteModule(site, projection.name, (projection,), width)


def _dense(name: str, module: nn.Module, start: int = 0) -> Projection:
    transposed = isinstance(module, Conv1D)
    columns = module.get_parameter("weight").shape[0 if transposed else 1]
    return Projection(name, module, slice(start, start + columns), transposed)


def _expert_site(site: Site, prefix: str, layer: nn.Module, module: nn.Module, experts: ExpertLayout) -> SiteModule:
    if getattr(module, "has_post_expert_norm", False):
        raise LayoutError(
            f"{site}: each expert's output passes through a norm before it is added, so an edit of one expert is not "
            "additive. This architecture cannot be edited."
        )
    fused = dict(module.named_parameters(recurse=False)).get(_FUSED)
    if fused is None or fused.ndim != 3 or not (experts.scaled_inputs or getattr(module, "has_gate", False)):
        raise LayoutError(
            f"{site}: {prefix}.{experts.module} is no mixture that can be watched: it must hold {_FUSED} of three "
            "axes, and run gated experts through transformers' experts interface (docs/add-a-model.md)."
        )
    count, *rest = fused.shape
    width = rest[0 if experts.transposed else 1]
    name = f"{prefix}.{experts.module}"
    projections = [
        Projection(name, module, slice(e * width, (e + 1) * width), experts.transposed, _FUSED, e) for e in range(count)
    ]
    shared = _submodule(layer, experts.shared) if experts.shared else None
    if shared is not None:
        projections.append(_dense(f"{prefix}.{experts.shared}", shared, start=count * width))
    sizes = Experts(count, width, projections[-1].columns.stop - count * width)
    outputs = tuple(found for path in experts.outputs if (found := _submodule(layer, path)) is not None)
    block = ExpertBlock(sizes, module, outputs, experts.scaled_inputs)
    return SiteModule(site, name, tuple(projections), 1, block)


def _width(site: Site, projection: Projection, heads: str, config: PreTrainedConfig) -> int:
    """Columns per component: one for a neuron, (input width) / (number of heads) for a head."""
    if site.block == "mlp":
        return 1
    columns, count = projection.shape[1], getattr(config, heads, None)
    if not isinstance(count, int) or count < 1:
        raise LayoutError(f"{site}: the config has no number of heads in {heads!r} (got {count!r}).")
    if columns % count:
        raise LayoutError(f"{site}: {columns} input columns do not divide into the config's {count} attention heads.")
    return int(columns // count)
