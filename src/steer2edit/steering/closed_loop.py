"""Further looks with the edit in place: what is still missing then gets its share of the row.

Effects are slopes at the base. An edit of them overshoots the first token of a decision ("I'm ...") and leaves what
comes next to chance ("... glad to help"). So the edit is put in place at a small drift, the model answers the wanted
requests again, and effects are measured once more, of a positive response less the edited model's own, over those
requests that it does not yet answer as wanted:

    ŝ ← ŝ + q ŝ',   q such that the edit spends the next of `SPENT`
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Site
from steer2edit.models import EncodedResponse, LanguageModel, SiteUpdate, span_log_probabilities, updated_outputs

SPENT = (0.01, 0.02, 0.03)
"""KL in nats per token that the edit spends after the first look at the base, and after each further one."""
_REPLIES = 32  # that drift is measured on
_MOST_STEPS = 8
_TOLERANCE = 0.15

Effects = Mapping[Site, Float[Tensor, " m"]]


class Loop:
    """Edits of effects, put in place for a moment.

    Args:
        model: the base.
        directions: u by site.
        costs: C + C̄ by site: the row is a = ŝ / (C + C̄).
        answers: the model's own replies to benign requests, which drift is measured on.
    """

    def __init__(
        self,
        model: LanguageModel,
        directions: Mapping[Site, Float[Tensor, " d"]],
        costs: Mapping[Site, Float[Tensor, " m"]],
        answers: Sequence[EncodedResponse],
    ) -> None:
        self._model, self._directions, self._costs = model, directions, costs
        self._answers = answers[:_REPLIES]
        self._base = span_log_probabilities(model, self._answers)

    @contextmanager
    def edited(self, effects: Effects) -> Iterator[None]:
        """The model with the edit of these effects."""
        updates = {}
        for site, cost in self._costs.items():
            row = torch.where(cost > 0, effects[site] / cost.clamp(min=1e-30), 0)
            device = self._model.sites[site].device
            updates[site] = SiteUpdate(1, row.to(device)[None], self._directions[site].to(device)[None])
        with updated_outputs(self._model, updates):
            yield

    def spending(self, kl: float, first: float, effects: Callable[[float], Effects]) -> Effects:
        """The effects at a strength that spends about this drift, or as near as was found."""
        at = math.sqrt(self._drift(effects(0.0)))
        strength, best = first, (math.inf, effects(0.0))
        for _ in range(_MOST_STEPS):
            drift = self._drift(effects(strength))
            away = abs(math.log(max(drift, 1e-12) / kl))
            best = min(best, (away, effects(strength)), key=lambda pair: pair[0])
            if away < _TOLERANCE:
                break
            risen = math.sqrt(drift) - at  # √KL grows about in proportion to the strength
            step = (math.sqrt(kl) - at) / risen if risen > 0 else 2.0
            strength *= min(max(step, 0.25), 4.0)
        return best[1]

    def _drift(self, effects: Effects) -> float:
        """KL(base ‖ edited) in nats per token."""
        with self.edited(effects):
            found = span_log_probabilities(self._model, self._answers)
        each = [(b.exp() * (b - f)).sum(dim=-1).mean() for b, f in zip(self._base, found, strict=True)]
        return max(float(torch.stack(each).mean()), 0.0)
