"""First-order effects: what each input column of a site adds to a score of a response where it is written along u.

    A     a score of one response, a sum or mean of log-probabilities
    w_t   = ∂A/∂y_t · u,    y_t what the site writes at position t, u the site's output direction
    e     = Σ_t w_t x_t,    x_t the input of the site's projection

so that A moves by aᵀe, to first order, under the edit ΔW = u aᵀ of that site. One backward pass per batch of responses
gives e at every site; nothing but a batch is ever held. Of an expert, x_t counts with its routing weight. Where no u is
given, Σ_t ∂A/∂y_t itself is taken, from which one can be chosen (`method.natural_direction`).

Some kernels of quantised matrices have no backward pass, and some give a wrong gradient without a word. Where that is
so, y = W x + b is differentiated as what it is:

    ∂A/∂x = Wᵀ ∂A/∂y,    W as the module itself applies it to the identity (`Projection.weight`), read anew each time

so that one dequantised matrix is held at a time.

Shapes: b = rows of a batch, t = tokens, s = pairs of a token and an expert, d, m = width of a site's output and input.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from steer2edit.core import Site
from steer2edit.errors import InvalidValueError
from steer2edit.models.batching import DEFAULT_BATCH_TOKENS, length_batches
from steer2edit.models.chat import EncodedResponse
from steer2edit.models.generation import span_distributions, token_log_probabilities
from steer2edit.models.hooks import RoutedTokens, hooked
from steer2edit.models.language_model import LanguageModel
from steer2edit.models.site_module import Projection, SiteModule, is_linear, is_quantised
from steer2edit.models.swapped import swapped
from steer2edit.progress import step

_SHORT = 256
"""Tokens of a row up to which attention is differentiated as plain products on a CPU: twice as fast as its fused kernel
there, for memory that is quadratic in the row."""
Score = Callable[[Float[Tensor, "t v"], EncodedResponse], Float[Tensor, ""]]
"""(log-distributions at a response's span, the response) → A, with a gradient."""


@dataclass(frozen=True)
class BatchEffects:
    """The effects of one batch of responses."""

    rows: list[int]  # indices of the batch's rows among the responses
    sites: dict[Site, Float[Tensor, "b _n"]]  # e by site, [b, m] (gradients [b, d]), float32, on the CPU
    time: int = 0  # which scoring of these responses it is, from 0


def first_tokens(count: int) -> Score:
    """log p of so many first tokens of a response: a refusal is decided there, and later tokens dilute it."""

    def score(log_probabilities: Tensor, response: EncodedResponse) -> Tensor:
        return token_log_probabilities(log_probabilities, response)[:count].sum()

    return score


def whole_response(log_probabilities: Float[Tensor, "t v"], response: EncodedResponse) -> Float[Tensor, ""]:
    """log p of a response per token, so that the difference of two answers is their length-normalised log-odds."""
    return token_log_probabilities(log_probabilities, response).mean()


def sampled_tokens(generator: torch.Generator) -> Score:
    """log p of tokens drawn from the model itself at each position of the span, divided by √(their number).

    The square of a column's effect is then, in the mean over draws, what the Fisher information of the next tokens
    says of it per token: twice what KL(base ‖ edited) costs per token, to second order, for a unit of that column.
    """

    def score(log_probabilities: Tensor, response: EncodedResponse) -> Tensor:
        probabilities = log_probabilities.detach().exp().cpu()
        below = probabilities.double().cumsum(dim=1)
        at = torch.rand(len(below), 1, dtype=below.dtype, generator=generator) * below[:, -1:]
        drawn = torch.searchsorted(below, at, right=True).clamp(max=below.shape[1] - 1).to(log_probabilities.device)
        total: Tensor = log_probabilities.gather(1, drawn).sum() / len(drawn) ** 0.5
        return total

    return score


def ended(response: EncodedResponse, end: int, share: float = 1.0) -> EncodedResponse:
    """A response that is over after a share of its tokens: all that is scored of it is the token that ends it."""
    length = response.start + max(round(share * len(response.response_ids)), 1)
    return EncodedResponse((*response.ids[:length], end), length)


def response_effects(
    model: LanguageModel,
    responses: Sequence[EncodedResponse],
    directions: Mapping[Site, Float[Tensor, " d"] | None],
    score: Score,
    *,
    times: int = 1,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    description: str = "Measuring effects",
) -> Iterator[BatchEffects]:
    """Effects of every site on a score of each response, for one batch of responses after another.

    Hooks and edits in force apply. `directions` has u by site: sites that are not there are not measured, and of one
    without u the gradient is taken. A batch's effects come once for each of the `times` that it is scored, from one
    forward pass: for scores that draw. An InvalidValueError where gradients cannot be taken of the model.
    """
    lengths = [len(response.ids) for response in responses]
    without = without_gradients(model)
    with step(description, len(responses)) as advance:
        for rows in length_batches(lengths, batch_tokens):
            batch = [responses[i] for i in rows]
            recorders = {site: _Recorder(model.sites[site], u, len(rows)) for site, u in directions.items()}
            with ExitStack() as stack:
                stack.enter_context(activation_gradients(model, without))
                if model.device.type == "cpu" and max(lengths[i] for i in rows) <= _SHORT:
                    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                for recorder in recorders.values():
                    stack.enter_context(hooked(recorder.site, matrix=recorder.matrix, routed=recorder.experts))
                spans = span_distributions(model, batch)
                found = []
                for time in range(times):
                    total = torch.stack([score(span, r) for span, r in zip(spans, batch, strict=True)]).sum()
                    backward(model, total, retain_graph=time + 1 < times)
                    found.append({site: recorder.take() for site, recorder in recorders.items()})
            for time, sites in enumerate(found):
                yield BatchEffects(rows, sites, time)
            advance(len(rows))


class _Recorder:
    """Collects of one site, on the way back, its effects along u or, where u is `None`, Σ_t ∂A/∂y_t."""

    def __init__(self, site: SiteModule, direction: Float[Tensor, " d"] | None, rows: int) -> None:
        self.site, self._direction, self._rows = site, direction, rows
        self._found = torch.zeros(rows, site.shape[0 if direction is None else 1])

    def take(self) -> Float[Tensor, "b _n"]:
        """What was collected since the last time; zero where the score does not depend on the site."""
        found, self._found = self._found, torch.zeros_like(self._found)
        return found

    def matrix(self, projection: Projection, x: Tensor, y: Tensor) -> None:
        """At a matrix's own output: of a mixture, gradients are those of the routed experts' output alone."""
        if self._direction is None:
            if self.site.experts is None:
                y.register_hook(partial(self._sum, 1))  # type: ignore[no-untyped-call]
            return
        rows = x.detach().reshape(self._rows, -1, x.shape[-1])

        def differentiate(gradient: Tensor) -> None:
            effects = torch.einsum("bt,btm->bm", self._along(gradient).view(self._rows, -1), rows.float())
            self._found[:, projection.columns] = effects.cpu()

        y.register_hook(differentiate)  # type: ignore[no-untyped-call]

    def experts(self, routed: RoutedTokens, output: Tensor) -> Tensor:
        """At the routed experts' output, which some write once for each expert."""
        if self._direction is None:
            times = output.numel() // output.shape[-1] // routed.tokens
            output.register_hook(partial(self._sum, times))  # type: ignore[no-untyped-call]
            return output
        assert self.site.sizes is not None
        count, width = self.site.sizes.routed, self.site.sizes.width
        slot = routed.token // (routed.tokens // self._rows) * count + routed.expert

        def differentiate(gradient: Tensor) -> None:
            share = self._along(gradient)[routed.row] * routed.weight.detach().float()
            effects = torch.zeros(self._rows * count, width, device=share.device)
            effects.index_add_(0, slot, routed.inputs.detach().float() * share[:, None])
            self._found[:, : count * width] = effects.view(self._rows, -1).cpu()

        output.register_hook(differentiate)  # type: ignore[no-untyped-call]
        return output

    def _sum(self, times: int, gradient: Tensor) -> None:
        each = gradient.detach().float().reshape(times, self._rows, -1, gradient.shape[-1])
        self._found = each.sum(dim=(0, 2)).cpu()

    def _along(self, gradient: Tensor) -> Float[Tensor, " bt"]:
        """w = ∂A/∂y · u of every row of an output."""
        assert self._direction is not None
        rows = gradient.detach().float().reshape(-1, gradient.shape[-1])
        return rows @ self._direction.to(gradient.device)


@contextmanager
def activation_gradients(model: LanguageModel, without: Sequence[Projection] = ()) -> Iterator[None]:
    """Gradients of activations, from the embedding on, and of no parameter; all is as before on leaving."""
    wanted = [p for p in model.network.parameters() if p.requires_grad]
    embedding: nn.Module = model.network.get_input_embeddings()  # type: ignore[operator]
    for parameter in wanted:
        parameter.requires_grad_(False)
    handle = embedding.register_forward_hook(lambda module, inputs, output: output.detach().requires_grad_(True))
    try:
        with ExitStack() as stack:
            for projection in without:
                kernel, module = projection.module.forward, projection.module
                stack.enter_context(swapped(module, "forward", partial(_Matrix.apply, kernel, projection)))
            stack.enter_context(torch.enable_grad())
            yield
    finally:
        handle.remove()
        for parameter in wanted:
            parameter.requires_grad_(True)


def backward(model: LanguageModel, total: Tensor, *, retain_graph: bool) -> None:
    """Differentiate a score, within `activation_gradients`; an InvalidValueError where some kernel cannot."""
    try:
        torch.autograd.backward(total, retain_graph=retain_graph)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:  # a kernel without a backward pass, a score without a graph
        raise InvalidValueError(
            f"effects need gradients, and {model.name!r} gives none ({' '.join(str(error).split())[:150]}). Load it "
            "unquantised, or convert with --importance cosine."
        ) from error


def without_gradients(model: LanguageModel) -> list[Projection]:
    """The quantised matrices of the whole network of a kind that passes no gradient or a wrong one."""
    quantised = [
        Projection(name, module, slice(0, vars(module)["in_features"]), False, quantised=model.dtype)
        for name, module in model.network.named_modules()
        if is_linear(module) and is_quantised(module)
    ]
    kinds = {type(projection.module): projection for projection in quantised}
    wrong = {kind for kind, projection in kinds.items() if not _passes_gradients(projection)}
    return [projection for projection in quantised if type(projection.module) in wrong]


def _passes_gradients(projection: Projection) -> bool:
    x = torch.ones(1, projection.shape[1], dtype=projection.dtype, device=projection.device, requires_grad=True)
    with torch.enable_grad(), warnings.catch_warnings(), suppress(RuntimeError):  # of outputs without a graph
        warnings.simplefilter("ignore")
        torch.autograd.backward(projection.module.forward(x).sum())
    expected = projection.weight.float().sum(dim=0)
    return x.grad is not None and bool((x.grad[0].float() - expected).norm() <= 0.05 * expected.norm())


class _Matrix(torch.autograd.Function):
    """y = W x + b by any kernel, ∂A/∂x = Wᵀ ∂A/∂y."""

    @staticmethod
    def forward(ctx: Any, kernel: Callable[[Tensor], Tensor], projection: Projection, x: Tensor) -> Tensor:
        ctx.projection, ctx.dtype = projection, x.dtype
        return kernel(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:  # type: ignore[override]
        weight = ctx.projection.weight
        return None, None, (gradient.to(weight.dtype) @ weight).to(ctx.dtype)
