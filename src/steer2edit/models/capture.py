"""Means of each site's input over response tokens, batch by batch, in float32 whatever the model's dtype.

Only inputs are captured: a projection is affine, so the mean of its output is `ȳ = W x̄ + b`, exactly.

Shapes: b = rows of a batch, t = tokens, s = span positions of all rows, m = width of a site's input.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steer2edit.core import Site
from steer2edit.models.batching import DEFAULT_BATCH_TOKENS, length_batches, pad
from steer2edit.models.chat import EncodedResponse
from steer2edit.models.language_model import LanguageModel
from steer2edit.progress import step

BatchMeans = dict[Site, Float[Tensor, "b m"]]


def span_means(
    model: LanguageModel,
    responses: Sequence[EncodedResponse],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    description: str = "Capturing",
) -> Iterator[tuple[list[int], BatchMeans]]:
    """Mean input of every site over each response's span, for one batch of responses after another.

    Args:
        model: the model to run.
        responses: what to run it on.
        batch_tokens: rows × longest row of a batch stays within this.
        description: of the progress bar.

    Yields:
        (indices of the batch's rows in `responses`, mean input per site as float32 [b, m] on the site's device).
    """
    lengths = [len(response.ids) for response in responses]
    with step(description, len(responses)) as advance:
        for indices in length_batches(lengths, batch_tokens):
            yield indices, _batch_means(model, [responses[i] for i in indices])
            advance(len(indices))


def mean_output(model: LanguageModel, site: Site, mean_input: Float[Tensor, " m"]) -> Float[Tensor, " d"]:
    """ȳ = W x̄ + b of one site, in the precision of `mean_input` (float32 or better)."""
    projection = model.sites[site]
    mean = projection.weight.to(mean_input.dtype) @ mean_input.to(projection.device)
    return mean if projection.bias is None else mean + projection.bias.to(mean.dtype)


@torch.inference_mode()
def _batch_means(model: LanguageModel, responses: Sequence[EncodedResponse]) -> BatchMeans:
    ids, mask = pad([response.ids for response in responses], pad_id=0, device=model.device)
    positions, averaging = _span(responses, ids.shape[1])
    means: BatchMeans = {}
    handles = [
        projection.module.register_forward_pre_hook(_recorder(means, site, positions, averaging))
        for site, projection in model.sites.items()
    ]
    try:
        model.network.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return means


def _span(responses: Sequence[EncodedResponse], longest: int) -> tuple[Int[Tensor, " s"], Float[Tensor, "b s"]]:
    """Flat positions of all spans, and the matrix that averages them row by row."""
    positions = torch.cat([torch.arange(r.span.start, r.span.stop) + i * longest for i, r in enumerate(responses)])
    owner = torch.cat([torch.full((len(r.span),), i) for i, r in enumerate(responses)])
    averaging = torch.zeros(len(responses), len(positions))
    averaging[owner, torch.arange(len(positions))] = 1 / torch.tensor([len(r.span) for r in responses])[owner].float()
    return positions, averaging


def _recorder(
    means: BatchMeans, site: Site, positions: Int[Tensor, " s"], averaging: Float[Tensor, "b s"]
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2)
        span = x.index_select(0, positions.to(x.device)).float()
        means[site] = averaging.to(x.device) @ span

    return record
