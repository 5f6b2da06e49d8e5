"""Activation steering at run time (§4.1)."""

from collections.abc import Iterator
from contextlib import contextmanager

from steer2edit.core import SteeringVectors
from steer2edit.models import LanguageModel, SiteUpdate, updated_outputs


@contextmanager
def steered(
    model: LanguageModel, vectors: SteeringVectors, strength: float, *, allow_mismatch: bool = False
) -> Iterator[None]:
    """Run the model with `y ← y + strength · v` at every site and every position within the context.

    v is not normalised. The weights are not touched, so leaving restores the model bit for bit.

    Raises:
        MismatchError: the vectors are for another model (unless `allow_mismatch`) or another shape.

    Source: §4.1.
    """
    model.require_fit(vectors, allow_mismatch=allow_mismatch)
    updates = {
        site: SiteUpdate(1, shift=strength * means.steering_vector.to(model.sites[site].device)[None, None])
        for site, means in vectors.sites.items()
    }
    with updated_outputs(model, updates):
        yield
