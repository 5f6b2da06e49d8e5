"""Activation steering in another way than the engine's: the same shift of every output, for all rows."""

from collections.abc import Iterator
from contextlib import contextmanager

from steer2edit.core import SteeringVectors
from steer2edit.models import LanguageModel, SiteUpdate, updated_outputs


@contextmanager
def steered(model: LanguageModel, vectors: SteeringVectors, strength: float) -> Iterator[None]:
    """Run the model with `y ← y + strength · v` at every site and every position."""
    updates = {
        site: SiteUpdate(1, shift=strength * means.steering_vector.to(model.sites[site].device)[None, None])
        for site, means in vectors.sites.items()
    }
    with updated_outputs(model, updates):
        yield
