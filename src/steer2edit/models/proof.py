"""What is proven of a model's sites before their first use, on a few tokens: silence, effect and components."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from steer2edit.core import Site
from steer2edit.errors import LayoutError
from steer2edit.models.decoder_layers import LayerRuns
from steer2edit.models.finding import find_writers, kind_of
from steer2edit.models.heads import fits, head_spans
from steer2edit.models.layer_runs import AllRowsBut, LayerRun, silenced
from steer2edit.models.site_module import SiteModule


@dataclass(frozen=True)
class Proof:
    """What was proven.

    Args:
        layers: how many layers hand the residual stream on unchanged when all that writes to it is silent.
        sites: how many sites reach the residual stream.
        heads: sites whose heads' columns were seen to carry one head each; layers that are alike are looked at once.
    """

    layers: int
    sites: int
    heads: tuple[Site, ...]


def prove(
    network: PreTrainedModel, layers: LayerRuns, sites: Mapping[Site, SiteModule], left_out: Iterable[str]
) -> Proof:
    """Prove a model's sites.

    *Silence*: with the outputs of all named writers zero, every layer hands the residual stream on unchanged.
    *Effect*: the output of each site reaches the residual stream. *Components*: a number before a mixer's projection
    that belongs to one head changes that head's columns alone, where that can be seen.

    Args:
        network: the model.
        layers: its layers, as they ran.
        sites: what was named or found.
        left_out: names of the writers that are not edited.

    Raises:
        LayoutError: one of them fails; the message says in which layer and module.
    """
    seen: set[object] = set()
    heads = []
    for index, run in enumerate(layers.runs):
        own = {site: module for site, module in sites.items() if site.layer == index}
        others = [network.get_submodule(name) for name in left_out if name.startswith(f"{run.name}.")]
        writers = list(dict.fromkeys([*(p.module for m in own.values() for p in m.projections), *others]))
        _prove_silence(run, writers)
        _prove_effects(run, own, writers)
        if (kind := kind_of(run.module)) not in seen:
            seen.add(kind)
            heads += [s for s, module in own.items() if s.block != "mlp" and _prove_components(run, s, module, writers)]
    return Proof(len(layers.runs), len(sites), tuple(heads))


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


def _prove_effects(run: LayerRun, sites: Mapping[Site, SiteModule], writers: list[nn.Module]) -> None:
    """In one run: each row of the batch has another site that is not silent, and the last has none."""
    parts = {site: {p.module for p in module.projections} for site, module in sites.items()}
    heard = {w: next((i for i, own in enumerate(parts.values()) if w in own), None) for w in writers}
    out = run.output({writer: AllRowsBut(row) for writer, row in heard.items()})
    quiet = run.output(silenced(writers))
    for row, (site, module) in enumerate(sites.items()):
        if torch.equal(out[row], quiet[row]) and any(projection.weight.any() for projection in module.projections):
            raise LayoutError(f"{site}: what {module.name} puts out does not reach the residual stream.")


def _prove_components(run: LayerRun, site: Site, module: SiteModule, writers: list[nn.Module]) -> bool:
    spans = head_spans(run, module.module, writers)
    if spans and not fits(spans[0], module.component_width):
        first, last = spans[0]
        raise LayoutError(
            f"{site}: the input columns {first} to {last} of {module.name} carry one head together, but with "
            f"{module.component_count} heads each would have {module.component_width}. The number of heads is wrong: "
            "name the config's attribute with the right one in the layout's heads (docs/add-a-model.md)."
        )
    return bool(spans)
