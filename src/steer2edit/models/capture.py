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
from jaxtyping import Float, Int
from torch import Tensor

from steer2edit.core import Site
from steer2edit.errors import ModelError
from steer2edit.models.batching import DEFAULT_BATCH_TOKENS, length_batches, pad
from steer2edit.models.chat import EncodedResponse
from steer2edit.models.experts import RoutedTokens
from steer2edit.models.hooks import at_output, hooked
from steer2edit.models.language_model import LanguageModel
from steer2edit.models.offload import LayerByLayer, offload_hooks
from steer2edit.models.site_module import Projection, SiteModule
from steer2edit.progress import step


@dataclass(frozen=True)
class Routing:
    """How a mixture of experts treated each response's span.

    Args:
        tokens: how many of its tokens each expert was given, [b, e].
        usage: mean over all its tokens of each expert's routing weight, 0 where it was not chosen, [b, e].
    """

    tokens: Float[Tensor, "b e"]
    usage: Float[Tensor, "b e"]


@dataclass(frozen=True)
class SpanMeans:
    """One site's means over each response's span.

    Args:
        input: x̄, [b, m]; of an expert, over the tokens that were routed to it (0 where none was).
        output: ȳ, [b, d]. `None` for a dense site, where it follows from the input (`mean_output`).
        routing: `None` for a dense site.
    """

    input: Float[Tensor, "b m"]
    output: Float[Tensor, "b d"] | None = None
    routing: Routing | None = None


@dataclass(frozen=True)
class BatchMeans:
    """What one batch of responses gives.

    Args:
        rows: indices of the batch's rows among the responses.
        sites: by site.
        blocks: mean output of each decoder layer, [b, d], by layer; empty unless asked for.
    """

    rows: list[int]
    sites: dict[Site, SpanMeans]
    blocks: dict[int, Float[Tensor, "b d"]]


def span_means(
    model: LanguageModel,
    responses: Sequence[EncodedResponse],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    description: str = "Capturing",
    block_outputs: bool = False,
) -> Iterator[BatchMeans]:
    """Means of every site over each response's span, for one batch of responses after another.

    Of a model whose layers are on the disk, all batches go through a layer before any goes through the next, and what
    is yielded of a batch is one layer's means.

    Args:
        model: the model to run.
        responses: what to run it on.
        batch_tokens: rows × longest row of a batch stays within this.
        description: of the progress bar.
        block_outputs: measure the output of every decoder layer too, in the same pass.

    Yields:
        The batch's means, float32, on the sites' devices.
    """
    lengths = [len(response.ids) for response in responses]
    batches = (_Batch(model, i, [responses[j] for j in i]) for i in length_batches(lengths, batch_tokens))
    with step(description, len(responses)) as advance:
        if offload_hooks(model.layers):
            for layer, means in _layer_by_layer(model, list(batches), block_outputs):
                yield means
                if layer == len(model.layers) - 1:
                    advance(len(means.rows))
            return
        for batch in batches:
            with _recorded(model, partial(_same, batch), block_outputs):
                batch.run()
            yield batch.means()
            advance(len(batch.rows))


def _layer_by_layer(
    model: LanguageModel, batches: "list[_Batch]", block_outputs: bool
) -> Iterator[tuple[int, BatchMeans]]:
    """(layer, what it gives for a batch): all batches go through a layer before any goes through the next."""
    passes = LayerByLayer(model.layers, [batch.run for batch in batches])
    with _recorded(model, lambda: batches[passes.current], block_outputs):
        for layer in passes:
            yield from ((layer, batch.means(layer)) for batch in batches)


def _same(batch: "_Batch") -> "_Batch":
    return batch


def mean_output(model: LanguageModel, site: Site, mean_input: Float[Tensor, "*b m"]) -> Float[Tensor, "*b d"]:
    """ȳ = W x̄ + b of one dense site, in the precision of `mean_input` (float32 or better)."""
    projection = model.sites[site]
    mean = mean_input.to(projection.device) @ projection.weight.to(mean_input.dtype).T
    return mean if projection.bias is None else mean + projection.bias.to(mean.dtype)


class _Batch:
    """A batch of responses on its way through the model, and what is recorded of it."""

    def __init__(self, model: LanguageModel, rows: list[int], responses: Sequence[EncodedResponse]) -> None:
        self.rows, self._network = rows, model.network
        self._ids, self._mask = pad([response.ids for response in responses], pad_id=0, device=model.device)
        self.spans = _Spans.of(responses, self._ids.shape[1], model.device)
        self.recorders = {site: _Recorder(self.spans, module) for site, module in model.sites.items()}
        self.blocks: dict[int, Tensor] = {}

    @torch.inference_mode()
    def run(self) -> None:
        """The forward pass."""
        self._network.base_model(input_ids=self._ids, attention_mask=self._mask, use_cache=False)

    @torch.inference_mode()
    def means(self, layer: int | None = None) -> BatchMeans:
        """What was recorded, of one layer or of all; it is not held any longer."""
        sites = [site for site in self.recorders if layer in (None, site.layer)]
        blocks = [index for index in self.blocks if layer in (None, index)]
        found = {site: self.recorders.pop(site).means() for site in sites}
        return BatchMeans(self.rows, found, {index: self.blocks.pop(index) for index in blocks})


@dataclass(frozen=True)
class _Running:
    """What is called at one site: it hands on to the batch that is running."""

    current: Callable[[], _Batch]
    site: Site

    def matrix(self, projection: Projection, x: Tensor, y: Tensor) -> None:
        """At a matrix that sees every token."""
        self.current().recorders[self.site].matrix(projection, x, y)

    def experts(self, routed: RoutedTokens, output: Tensor) -> Tensor:
        """At the routed experts."""
        return self.current().recorders[self.site].experts(routed, output)

    def output(self, index: int, y: Tensor) -> None:
        """At one of the outputs of a mixture."""
        self.current().recorders[self.site].output(index, y)


@contextmanager
def _recorded(model: LanguageModel, current: Callable[[], _Batch], block_outputs: bool) -> Iterator[None]:
    """Record what sites are given, and layers hand on, for the batch that is running."""
    with ExitStack() as stack:
        for site, module in model.sites.items():
            own = _Running(current, site)
            stack.enter_context(hooked(module, matrix=own.matrix, routed=own.experts, output=own.output))
        width = next(iter(model.sites.values())).shape[0]
        for index, layer in enumerate(model.layers if block_outputs else ()):
            record = partial(_record, current, index, width)
            stack.callback(layer.register_forward_hook(at_output(record)).remove)
        yield


def _record(current: Callable[[], _Batch], layer: int, width: int, output: Tensor) -> None:
    if output.ndim != 3 or output.shape[-1] != width:
        raise ModelError(
            "the layers of this model hand on several residual streams, so there is no one output of a layer to take "
            "control vectors from. Leave out --block-outputs."
        )
    batch = current()
    batch.blocks[layer] = batch.spans.mean(output)


@dataclass(frozen=True)
class _Spans:
    """The span positions of a batch of b rows of t tokens.

    Args:
        ranges: the span within each row.
        positions: flat positions of all spans, [s].
        averaging: the matrix that averages them row by row, [b, s].
        share: of each token of the batch in its row's mean, [b · t]: 1 / length within the span, 0 outside.
        row: which row each token of the batch is in, [b · t].
    """

    ranges: list[range]
    positions: Int[Tensor, " s"]
    averaging: Float[Tensor, "b s"]
    share: Float[Tensor, " bt"]
    row: Int[Tensor, " bt"]

    @classmethod
    def of(cls, responses: Sequence[EncodedResponse], longest: int, device: torch.device) -> "_Spans":
        places = [torch.arange(r.span.start, r.span.stop) + i * longest for i, r in enumerate(responses)]
        positions = torch.cat(places)
        owner = torch.cat([torch.full((len(r.span),), i) for i, r in enumerate(responses)])
        share = torch.zeros(len(responses) * longest)
        share[positions] = 1 / torch.tensor([len(r.span) for r in responses])[owner].float()
        averaging = torch.zeros(len(responses), len(positions))
        averaging[owner, torch.arange(len(positions))] = share[positions]
        row = torch.arange(len(responses)).repeat_interleave(longest)
        ranges = [response.span for response in responses]
        return cls(ranges, positions.to(device), averaging.to(device), share.to(device), row.to(device))

    def mean(self, values: Float[Tensor, "... n"]) -> Float[Tensor, "b n"]:
        """Mean over each row's span, in float32, of values by token."""
        if values.device.type == "cpu":  # row by row, what is summed stays in the cache: several times faster
            rows = values.reshape(len(self.ranges), -1, values.shape[-1])
            mean = torch.empty(len(rows), rows.shape[-1])
            for own, given, at in zip(mean, rows, self.ranges, strict=True):
                torch.mean(given[at.start : at.stop], dim=0, dtype=torch.float32, out=own)
            return mean
        span = values.flatten(0, -2).index_select(0, self.positions.to(values.device)).float()
        return self.averaging.to(values.device) @ span


class _Recorder:
    """Collects one site's means while the model runs."""

    def __init__(self, spans: _Spans, site: SiteModule) -> None:
        self.spans, self.site = spans, site
        self._input: Tensor | None = None  # of a dense site, or of the shared expert
        self._outputs: dict[int, Tensor] = {}
        self._routed: tuple[Tensor, Tensor, Tensor] | None = None

    def matrix(self, projection: Projection, x: Tensor, y: Tensor) -> None:
        """At a matrix that sees every token."""
        self._input = self.spans.mean(x)

    def experts(self, routed: RoutedTokens, output: Tensor) -> Tensor:
        """At the routed experts."""
        self._routed = _routed_means(self.spans, routed, len(self.site.routed))
        return output

    def output(self, index: int, y: Tensor) -> None:
        """At one of the outputs that add up to what the block writes."""
        self._outputs[index] = self.spans.mean(y)

    def means(self) -> SpanMeans:
        """What was collected."""
        if self._routed is None:
            assert self._input is not None
            return SpanMeans(self._input)
        inputs, tokens, usage = self._routed
        if self._input is not None:
            length = torch.bincount(self.spans.row[self.spans.positions]).to(self._input)[:, None]
            inputs = torch.cat([inputs, self._input], dim=1)
            tokens, usage = torch.cat([tokens, length], dim=1), torch.cat([usage, torch.ones_like(length)], dim=1)
        output = torch.stack(list(self._outputs.values())).sum(dim=0)
        return SpanMeans(inputs, output, Routing(tokens, usage))


def _routed_means(spans: _Spans, routed: RoutedTokens, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(mean input [b, count · m], tokens [b, count], usage [b, count]) of the routed experts, over each row's span."""
    device = routed.inputs.device
    share, row = spans.share.to(device)[routed.token], spans.row.to(device)[routed.token]
    inside = (share > 0).nonzero().flatten()
    slot = (row * count + routed.expert)[inside]
    slots = len(spans.averaging) * count
    total = torch.zeros(slots, routed.inputs.shape[1], device=device).index_add_(0, slot, routed.inputs[inside].float())
    tokens = torch.bincount(slot, minlength=slots).float()
    usage = torch.zeros(slots, device=device).index_add_(0, slot, (routed.weight.float() * share)[inside])
    mean = total / tokens.clamp(min=1)[:, None]
    shape = (len(spans.averaging), -1)
    return mean.view(shape), tokens.view(shape), usage.view(shape)
