"""Further looks with the edit in place: what is still missing then gets its share of the row.

Effects are slopes at the base. An edit of them overshoots the first token of a decision ("I'm ...") and leaves what
comes next to chance ("... glad to help"). So the edit is put in place at a small drift, the model answers the wanted
requests again, and effects are measured once more, of a positive response less the edited model's own, over those
requests that it does not yet answer as wanted:

    ŝ ← ŝ + q ŝ',   q such that the edit spends the next of `SPENT`
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Site
from steer2edit.models import EncodedResponse, LanguageModel, SiteUpdate, span_log_probabilities, updated_outputs

SPENT = (0.01, 0.02, 0.03)
"""KL in nats per token that the edit spends after the first look at the base, and after each further one."""
_REPLIES = 16  # that drift is measured on
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
        for site, row in self._rows(effects).items():
            device = self._model.sites[site].device
            updates[site] = SiteUpdate(1, row.to(device)[None], self._directions[site].to(device)[None])
        with updated_outputs(self._model, updates):
            yield

    def size(self, effects: Effects) -> float:
        """Norm of the edit's row over all sites."""
        return math.sqrt(sum(float(row.square().sum()) for row in self._rows(effects).values()))

    def spending(
        self, kl: float, known: Effects, more: Effects, first: float, spent: float = 0.0
    ) -> tuple[Effects, float]:
        """known + q more, with q such that the edit spends about this drift, or as near as was found; and its drift.

        Args:
            kl: in nats per token; more than `known` spends.
            known: effects that stay.
            more: effects that join them.
            first: q to begin with.
            spent: the drift of `known`.
        """

        def at(q: float) -> Effects:
            return {site: known[site] + q * more[site] for site in known}

        begun = math.sqrt(spent)
        q, found, reached, distance = first, known, spent, math.inf
        for _ in range(_MOST_STEPS):
            drift = self._drift(at(q))
            away = abs(math.log(max(drift, 1e-12) / kl))
            if away < distance:
                found, reached, distance = at(q), drift, away
            if away < _TOLERANCE:
                break
            risen = math.sqrt(drift) - begun  # √KL grows about in proportion to q
            q *= min(max((math.sqrt(kl) - begun) / risen, 0.25), 4.0) if risen > 0 else 2.0
        return found, reached

    def _rows(self, effects: Effects) -> dict[Site, Float[Tensor, " m"]]:
        """a = ŝ / (C + C̄); zero where no drift depends on a column."""
        return {
            site: torch.where(cost > 0, effects[site] / cost.clamp(min=1e-30), 0) for site, cost in self._costs.items()
        }

    def _drift(self, effects: Effects) -> float:
        """KL(base ‖ edited) in nats per token; infinite where it is not a number."""
        with self.edited(effects):
            found = span_log_probabilities(self._model, self._answers)
        each = [(b.exp() * (b - f)).sum(dim=-1).mean() for b, f in zip(self._base, found, strict=True)]
        drift = float(torch.stack(each).mean())
        return max(drift, 0.0) if math.isfinite(drift) else math.inf
