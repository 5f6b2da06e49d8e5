"""Means of each site's input over response tokens, batch by batch, in float32 whatever the model's dtype.

Of a dense site only the input is captured: a projection is affine, so the mean of its output is `ȳ = W x̄ + b`, exactly.
Of a mixture of experts each expert's input is, over the tokens that were routed to it, and the block's output itself.

Shapes: b = rows of a batch, t = tokens, s = span positions of all rows, d, m = width of a site's output and input, e =
matrices of a mixture (its routed experts, and the shared one).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Site
from steer2edit.errors import ModelError
from steer2edit.models.batching import DEFAULT_BATCH_TOKENS, length_batches, pad
from steer2edit.models.chat import EncodedResponse
from steer2edit.models.hooks import RoutedTokens, at_output, hooked
from steer2edit.models.language_model import LanguageModel
from steer2edit.models.offload import LayerByLayer, offload_hooks
from steer2edit.progress import step


@dataclass(frozen=True)
class SpanMeans:
    """One site's means over each response's span."""

    input: Float[Tensor, "b m"]  # x̄, [b, m]; of an expert, over the tokens that were routed to it (0 where none was)
    # ȳ, [b, d]. `None` for a dense site, where it follows from the input (`mean_output`).
    output: Float[Tensor, "b d"] | None = None
    tokens: Float[Tensor, "b e"] | None = None  # how many each expert was given; `None` for a dense site


@dataclass(frozen=True)
class BatchMeans:
    """What one batch of responses gives."""

    rows: list[int]  # indices of the batch's rows among the responses
    sites: dict[Site, SpanMeans]  # by site
    # mean output of each decoder layer, [b, d], by layer; empty unless asked for
    blocks: dict[int, Float[Tensor, "b d"]]


def span_means(
    model: LanguageModel,
    responses: Sequence[EncodedResponse],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    description: str = "Capturing",
    block_outputs: bool = False,
) -> Iterator[BatchMeans]:
    """Means of every site over each response's span, for one batch of responses after another, on the sites' devices.

    Of a model whose layers are on the disk, all batches go through a layer before any goes through the next, and what
    is yielded of a batch is one layer's means.
    """
    indices = length_batches([len(response.ids) for response in responses], batch_tokens)
    batches = (_Batch(model, rows, [responses[i] for i in rows]) for rows in indices)
    with step(description, len(responses)) as advance:
        if offload_hooks(model.layers):
            waiting = list(batches)
            passes = LayerByLayer(model.layers, [batch.run for batch in waiting])
            with _recorded(model, lambda: waiting[passes.current], block_outputs):
                for layer in passes:
                    for batch in waiting:
                        yield batch.means(layer)
                        if layer == len(model.layers) - 1:
                            advance(len(batch.rows))
            return
        for batch in batches:
            with _recorded(model, lambda batch=batch: batch, block_outputs):  # type: ignore[misc]
                batch.run()
            yield batch.means()
            advance(len(batch.rows))


def mean_output(model: LanguageModel, site: Site, mean_input: Float[Tensor, "*b m"]) -> Float[Tensor, "*b d"]:
    """ȳ = W x̄ + b of one dense site, in the precision of `mean_input` (float32 or better)."""
    projection = model.sites[site]
    mean = mean_input.to(projection.device) @ projection.weight.to(mean_input.dtype).T
    return mean if projection.only.bias is None else mean + projection.only.bias.to(mean.dtype)


class _Batch:
    """A batch of responses on its way through the model, and what is recorded of it."""

    def __init__(self, model: LanguageModel, rows: list[int], responses: Sequence[EncodedResponse]) -> None:
        self.rows, self._model = rows, model
        self._ids, self._mask = pad([response.ids for response in responses], pad_id=0, device=model.device)
        self._spans = [response.span for response in responses]
        share = torch.zeros(self._ids.shape)
        for row, span in zip(share, self._spans, strict=True):
            row[span.start : span.stop] = 1 / len(span)
        averaging: Tensor = torch.block_diag(*(row[row > 0] for row in share))  # type: ignore[no-untyped-call]
        self._averaging = averaging.to(model.device)  # the matrix that averages spans row by row, [b, s]
        self._share = share.flatten().to(model.device)  # weight of every flat position in its row's mean, [b · t]
        self._positions = self._share.nonzero().flatten()  # flat positions of all spans, [s]
        self._inputs: dict[Site, Tensor] = {}  # of a dense site, or of the shared expert
        self._routed: dict[Site, tuple[Tensor, Tensor]] = {}
        self._outputs: dict[Site, dict[int, Tensor]] = {}  # of a mixture, the parts of its sum
        self._blocks: dict[int, Tensor] = {}

    @torch.inference_mode()
    def run(self) -> None:
        self._model.network.base_model(input_ids=self._ids, attention_mask=self._mask, use_cache=False)

    def at_matrix(self, site: Site, x: Tensor) -> None:
        self._inputs[site] = self._mean(x)

    def at_experts(self, site: Site, routed: RoutedTokens, output: Tensor) -> Tensor:
        """At the routed experts: (mean input [b, experts · m], tokens [b, experts]) over each row's span."""
        device, rows, count = routed.inputs.device, len(self.rows), len(self._model.sites[site].routed)
        share, row = self._share.to(device)[routed.token], routed.token // (routed.tokens // rows)
        inside = (share > 0).nonzero().flatten()
        slot, slots = (row * count + routed.expert)[inside], rows * count
        total = torch.zeros(slots, routed.inputs.shape[1], device=device)
        total.index_add_(0, slot, routed.inputs[inside].float())
        tokens = torch.bincount(slot, minlength=slots).float()
        mean = total / tokens.clamp(min=1)[:, None]
        self._routed[site] = mean.view(rows, -1), tokens.view(rows, -1)
        return output

    def at_output(self, site: Site, index: int, y: Tensor) -> None:
        self._outputs.setdefault(site, {})[index] = self._mean(y)

    def at_block(self, layer: int, output: Tensor) -> None:
        if output.ndim != 3 or output.shape[-1] != next(iter(self._model.sites.values())).shape[0]:
            raise ModelError(
                "the layers of this model hand on several residual streams, so there is no one output of a layer to "
                "take control vectors from. Leave out --block-outputs."
            )
        self._blocks[layer] = self._mean(output)

    @torch.inference_mode()
    def means(self, layer: int | None = None) -> BatchMeans:
        """What was recorded, of one layer or of all; it is not held any longer."""
        found = {site: self._site_means(site) for site in self._model.sites if layer in (None, site.layer)}
        blocks = [index for index in self._blocks if layer in (None, index)]
        return BatchMeans(self.rows, found, {index: self._blocks.pop(index) for index in blocks})

    def _site_means(self, site: Site) -> SpanMeans:
        if site not in self._routed:
            return SpanMeans(self._inputs.pop(site))
        inputs, tokens = self._routed.pop(site)
        if site in self._inputs:  # of the shared expert, which every token is given to
            length = torch.tensor([[len(span)] for span in self._spans]).to(inputs)
            inputs = torch.cat([inputs, self._inputs.pop(site)], dim=1)
            tokens = torch.cat([tokens, length], dim=1)
        return SpanMeans(inputs, torch.stack(list(self._outputs.pop(site).values())).sum(dim=0), tokens)

    def _mean(self, values: Float[Tensor, "... n"]) -> Float[Tensor, "b n"]:
        """Mean over each row's span, in float32, of values by token."""
        if values.device.type == "cpu":  # row by row, what is summed stays in the cache: several times faster
            rows = values.reshape(len(self.rows), -1, values.shape[-1])
            mean = torch.empty(len(rows), rows.shape[-1])
            for own, given, at in zip(mean, rows, self._spans, strict=True):
                torch.mean(given[at.start : at.stop], dim=0, dtype=torch.float32, out=own)
            return mean
        span = values.flatten(0, -2).index_select(0, self._positions.to(values.device)).float()
        return self._averaging.to(values.device) @ span


@contextmanager
def _recorded(model: LanguageModel, current: Callable[[], _Batch], block_outputs: bool) -> Iterator[None]:
    """Record what sites are given, and layers hand on, for the batch that is running."""
    with ExitStack() as stack:
        for site, module in model.sites.items():
            stack.enter_context(
                hooked(
                    module,
                    matrix=lambda _, x, y, site=site: current().at_matrix(site, x),  # type: ignore[misc]
                    routed=lambda routed, y, site=site: current().at_experts(site, routed, y),  # type: ignore[misc]
                    output=lambda index, y, site=site: current().at_output(site, index, y),  # type: ignore[misc]
                )
            )
        for index, layer in enumerate(model.layers if block_outputs else ()):
            note = partial(at_output, lambda y, index=index: current().at_block(index, y))  # type: ignore[misc]
            stack.enter_context(layer.register_forward_hook(note))
        yield
