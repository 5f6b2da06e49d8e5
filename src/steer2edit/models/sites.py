"""The sites of a model: what its layout says, or what is found, as modules; proven before their first use."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from steer2edit.core import BLOCKS, Experts, Site
from steer2edit.errors import LayoutError
from steer2edit.models.finding import find_layout, find_writers, kind_of
from steer2edit.models.heads import fits, head_count, head_spans
from steer2edit.models.layers import ROWS, TOKENS, LayerRun, run_layers, silenced
from steer2edit.models.layout import ExpertLayout, Layout
from steer2edit.models.site_module import PLAIN, ExpertBlock, Projection, SiteModule, is_linear, is_quantised
from steer2edit.models.twin import tiny_twin

_FUSED = "down_proj"


@dataclass(frozen=True)
class ModelSites:
    """Where a model's sites are."""

    layout: Layout  # given or found
    path: str  # of the list of decoder layers
    sites: dict[Site, SiteModule]  # in order
    left_out: dict[str, str]  # why each module that writes to the residual stream is not edited, by name
    # sites whose heads' columns were seen to carry one head each (layers that are alike are looked at once) when all
    # sites were proven; `None` where nothing could be
    heads_seen: tuple[Site, ...] | None = None


def find_sites(network: PreTrainedModel, layout: Layout | None = None) -> ModelSites:
    """The sites of a model, found where no layout is given, and proven.

    They are found on a tiny twin of the model, whose random weights hide nothing, and proven on the model itself, or on
    the twin where weights are not in memory. A model whose twin cannot be made, or is another, is looked at itself. A
    LayoutError where nothing can be edited, or something that is not named changes the residual stream.
    """
    in_memory = not any(parameter.is_meta for parameter in network.parameters())
    twin, why = (None, "") if layout and in_memory else tiny_twin(network)
    if in_memory and twin is not None:
        with suppress(LayoutError):
            return _proven(network, _proven(twin, None).layout)
    if in_memory:
        return _proven(network, layout)
    if twin is not None:
        found = _proven(twin, layout)
        return replace(_structure(network, found.layout), heads_seen=found.heads_seen)
    if layout is not None:
        return _structure(network, layout)
    raise LayoutError(
        f"the weights are not in memory, and no small model of the type {network.config.model_type!r} can be "
        f"made to find its sites on ({why}). Find them where the weights fit (steer2edit models MODEL --out "
        "layout.toml), and pass the file with --layout."
    )


def _proven(network: PreTrainedModel, layout: Layout | None) -> ModelSites:
    """The sites of a layout, or of the one that is found, with their proof."""
    given = _structure(network, layout) if layout else None
    with _nothing_zero(network):
        path, layers = run_layers(network, given.path if given else None)
        found = given or _structure(network, find_layout(network, path, layers))
        return replace(found, heads_seen=_prove(network, layers, found.sites, found.left_out))


@contextmanager
def _nothing_zero(network: nn.Module) -> Iterator[None]:
    """For a while matrices that are all zeros, as those of layers that were put in between, are random numbers."""
    plain = (p for p in network.parameters() if type(p) is nn.Parameter and p.ndim >= 2 and p.dtype in PLAIN)
    zero = [p for p in plain if not p[:1].any() and not p.any()]  # nearly every first row has a number
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in zero:
            parameter.normal_(std=0.05)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter in zero:
                parameter.zero_()


def _structure(network: PreTrainedModel, layout: Layout) -> ModelSites:
    modules = dict(network.named_modules(remove_duplicate=False))  # some layers share a part
    lists = {path: own for path in layout.layers if isinstance(own := modules.get(path), nn.ModuleList) and len(own)}
    if not lists:
        where = " or ".join(map(repr, layout.layers))
        raise LayoutError(f"layout {layout.name!r}: there is no list of layers at {where} (docs/add-a-model.md).")
    (path, layers), config = next(iter(lists.items())), network.config.get_text_config()
    found = [site for index in range(len(layers)) for site in _layer_sites(layout, path, index, modules, config)]
    used = {projection.name for site in found for projection in site.projections}
    left_out = {
        name: why
        for index in range(len(layers))
        for place, why in layout.left_out.items()
        if (name := f"{path}.{index}.{place}") in modules and name not in used
    }
    if not found:
        reasons = "; ".join(f"{place}: {why}" for place, why in layout.left_out.items())
        raise LayoutError(
            f"nothing in the model type {network.config.model_type!r} can be edited "
            f"({reasons or 'its layout names no module'})."
        )
    return ModelSites(layout, path, {site.site: site for site in found}, left_out)


def _layer_sites(
    layout: Layout, path: str, index: int, modules: Mapping[str, nn.Module], config: PreTrainedConfig
) -> Iterator[SiteModule]:
    prefix = f"{path}.{index}"
    for block in BLOCKS:
        site, experts = Site(index, block), layout.experts
        if block == "mlp" and experts and f"{prefix}.{experts.module}" in modules:
            yield _expert_site(site, prefix, modules, experts)
            continue
        place = next((p for p in getattr(layout, block) if f"{prefix}.{p}" in modules), None)
        if place is not None:
            projection = _dense(f"{prefix}.{place}", modules, prefix)
            heads, columns = layout.heads.get(place, "num_attention_heads"), projection.shape[1]
            count = columns if block == "mlp" else head_count(config, heads, index)
            if count is None or columns % count:
                raise LayoutError(
                    f"{site}: {columns} input columns do not divide into heads: the config has {heads} = "
                    f"{getattr(config, heads, None)!r}. Name the attribute with their number (docs/add-a-model.md)."
                )
            yield SiteModule(site, projection.name, (projection,), columns // count)


def _dense(name: str, modules: Mapping[str, nn.Module], layer: str, start: int = 0) -> Projection:
    module = modules[name]
    if not is_linear(module):
        raise LayoutError(f"{name} is a {type(module).__name__}, and a site must be a linear module.")
    dtype = next((p.dtype for p in modules[layer].parameters() if p.dtype in PLAIN), torch.float32)
    quantised = dtype if is_quantised(module) else None
    projection = Projection(name, module, slice(0), isinstance(module, Conv1D), quantised=quantised)
    return replace(projection, columns=slice(start, start + projection.shape[1]))


def _expert_site(site: Site, prefix: str, modules: Mapping[str, nn.Module], experts: ExpertLayout) -> SiteModule:
    name = f"{prefix}.{experts.module}"
    module = modules[name]
    if getattr(module, "has_post_expert_norm", False):
        raise LayoutError(
            f"{site}: each expert's output passes through a norm before it is added, so an edit of one expert is not "
            "additive. This architecture cannot be edited."
        )
    fused = dict(module.named_parameters(recurse=False)).get(_FUSED)
    if fused is None or fused.ndim != 3 or not (experts.scaled_inputs or hasattr(module, "has_gate")):
        raise LayoutError(
            f"{site}: {name} is no mixture that can be watched: it must hold {_FUSED} of three "
            "axes, and run its experts through transformers' experts interface (docs/add-a-model.md)."
        )
    count, *rest = fused.shape
    width = rest[0 if experts.transposed else 1]
    projections = [
        Projection(name, module, slice(e * width, (e + 1) * width), experts.transposed, _FUSED, e) for e in range(count)
    ]
    if experts.shared and (shared := f"{prefix}.{experts.shared}") in modules:
        projections.append(_dense(shared, modules, prefix, count * width))
    sizes = Experts(count, width, projections[-1].columns.stop - count * width)
    outputs = tuple(modules[own] for path in experts.outputs if (own := f"{prefix}.{path}") in modules)
    block = ExpertBlock(sizes, module, outputs, experts.scaled_inputs)
    return SiteModule(site, name, tuple(projections), 1, block)


def _prove(
    network: PreTrainedModel, layers: list[LayerRun], sites: Mapping[Site, SiteModule], left_out: Iterable[str]
) -> tuple[Site, ...]:
    """Prove a model's sites; those are returned of which heads were seen.

    *Silence*: with the outputs of all named writers zero, every layer hands the residual stream on unchanged.
    *Effect*: the output of each site reaches the residual stream. *Components*: a number before a mixer's projection
    that belongs to one head changes that head's columns alone, where that can be seen. Otherwise a LayoutError.
    """
    seen: set[object] = set()
    heads = []
    for index, run in enumerate(layers):
        own = {site: module for site, module in sites.items() if site.layer == index}
        others = [network.get_submodule(name) for name in left_out if name.startswith(f"{run.name}.")]
        writers = list(dict.fromkeys([*(p.module for m in own.values() for p in m.projections), *others]))
        _prove_silence(run, writers)
        _prove_effects(run, own, writers)
        if (kind := kind_of(run.module)) not in seen:
            seen.add(kind)
            heads += [s for s, module in own.items() if s.block != "mlp" and _prove_components(run, s, module, writers)]
    return tuple(heads)


def _prove_silence(run: LayerRun, writers: list[nn.Module]) -> None:
    if run.silent(writers) or run.silent(writers, without_norms=True):
        return
    names = {module: name for name, module in run.module.named_modules()}
    extra = find_writers(run, [names[writer] for writer in writers])
    raise LayoutError(
        f"{run.name}: with all that is named as writing to the residual stream silent, {' and '.join(extra)} still "
        f"{'writes' if len(extra) == 1 else 'write'} to it. Name it in the layout, as a site or in left_out "
        "(docs/add-a-model.md)."
    )


def _all_rows_but(row: int | None, output: Tensor) -> Tensor:
    """Zeros for every row of the batch but one; `None` for every row."""
    silent = torch.zeros_like(output)
    if row is not None:  # the batch may be flattened, and given to every expert
        by_row = (-1, ROWS, TOKENS * output.shape[-1])
        silent.view(by_row)[:, row] = output.reshape(by_row)[:, row]
    return silent


def _prove_effects(run: LayerRun, sites: Mapping[Site, SiteModule], writers: list[nn.Module]) -> None:
    """In one run: each row of the batch has another site that is not silent, and the last has none."""
    parts = [{p.module for p in module.projections} for module in sites.values()]
    rows = {writer: next((i for i, own in enumerate(parts) if writer in own), None) for writer in writers}
    out = run.output({writer: partial(_all_rows_but, row) for writer, row in rows.items()})
    quiet = run.output(silenced(writers))
    for row, (site, module) in enumerate(sites.items()):
        if torch.equal(out[row], quiet[row]) and any(projection.weight.any() for projection in module.projections):
            raise LayoutError(f"{site}: what {module.name} puts out does not reach the residual stream.")


def _prove_components(run: LayerRun, site: Site, module: SiteModule, writers: list[nn.Module]) -> bool:
    spans = head_spans(run, module.name.removeprefix(f"{run.name}."), writers)
    if spans and not fits(spans[0], module.component_width):
        first, last = spans[0]
        raise LayoutError(
            f"{site}: the input columns {first} to {last} of {module.name} carry one head together, but with "
            f"{module.component_count} heads each would have {module.component_width}. The number of heads is wrong: "
            "name the config's attribute with the right one in the layout's heads (docs/add-a-model.md)."
        )
    return bool(spans)
