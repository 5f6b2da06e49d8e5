"""What each component of an edit adds to the log-probability of a reply.

By leaving it out: log p(reply | edit) − log p(reply | edit without it). That is exact, costs a pass for each, and is
done for the few that are largest to first order. Components act on each other, so these do not add up to the whole.
"""

from contextlib import suppress
from dataclasses import dataclass

from steer2edit.core import Component, Editing
from steer2edit.editing import intervened
from steer2edit.engines import Engine
from steer2edit.errors import InvalidValueError
from steer2edit.models import EncodedResponse, token_log_probabilities
from steer2edit.models.effects import response_effects

MOST = 10


@dataclass(frozen=True)
class Contributions:
    """Nats that the whole edit adds to log p of a reply, and its top components with λ and what each adds."""

    total: float
    top: list[tuple[Component, float, float]]


def contributions(engine: Engine, response: EncodedResponse, editing: Editing, count: int = MOST) -> Contributions:
    """What the edit and its `count` top components add to log p of a reply that was written under it."""
    chosen = _largest(engine, response, editing, count)
    parts = [Editing(editing.edit.without(str(component)), editing.strength) for component, _ in chosen]
    base, whole, *left = (own[0].log_probability for own in engine.score([response], [None, editing, *parts], kl=False))
    top = [(component, size, whole - without) for (component, size), without in zip(chosen, left, strict=True)]
    return Contributions(whole - base, sorted(top, key=lambda one: -abs(one[2])))


def _largest(engine: Engine, response: EncodedResponse, editing: Editing, count: int) -> list[tuple[Component, float]]:
    """(component, λ) of the largest first-order contributions; of the largest |λ| where a model gives no gradient."""
    found: list[tuple[float, Component, float]] = []
    sites = editing.edit.sites
    with suppress(InvalidValueError), intervened(engine.model, [editing]):
        directions = {site: own.output_direction for site, own in sites.items()}
        (effects,) = response_effects(
            engine.model, [response], directions, lambda log_p, own: token_log_probabilities(log_p, own).sum()
        )
        for site, own in sites.items():
            added = (own.row * effects.sites[site][0]).view(own.magnitude.numel(), -1).sum(dim=1).abs()
            for index in added.argsort(descending=True)[:count].tolist():
                component = site.component(index, own.experts)
                found.append((added[index].item(), component, own.magnitude[index].item()))
    if not found:
        return [(component, size) for component, size, _ in editing.edit.top_components(count)]
    found.sort(key=lambda one: -one[0])
    return [(component, size) for added, component, size in found[:count] if added]
