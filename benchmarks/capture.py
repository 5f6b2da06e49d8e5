"""Capture: how much of the forward pass's own throughput is left when every site's span means are taken?

The physics. A forward pass costs about 2 FLOP per weight and token. Capture adds, per site and batch, a gather of
the span's rows (s × m numbers read and written once), their conversion to float32, and the average
[b, s] · [s, m]. It adds no second product with W: a projection is affine, so outputs follow from input means,
ȳ = W x̄ + b, once per class instead of once per token. Nothing of size [tokens, m] outlives its layer. So capture
should run at close to the speed of the same batches without hooks; the aim is 0.95.

The comparison. The official Steer2Edit code runs one response at a time through the whole model (logits included),
keeps the input and the output of every site over all positions, stacks each kind over layers, and averages the
span in the model's dtype. One short response leaves most of a matrix unit idle, and the stack copies every
activation once more. `official` below is that procedure, written anew on the same token ids.

Arms, in turn: `plain` (the same length-sorted, padded batches through the backbone, no hooks), `capture`
(`span_means`), `official`. Tokenisation is outside all three.

Verified: input means, and outputs from them by linearity, equal those that `official` captures: in float32 tightly
(two orders of summation differ), and in the model's own dtype up to its rounding over 30 layers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import torch
import typer
from model_shapes import open_model
from timing import emit, in_turn, paired_ratio, say, spread
from torch import Tensor, nn

from steer2edit.core import Site
from steer2edit.models import (
    EncodedResponse,
    LanguageModel,
    encode_responses,
    length_batches,
    load_model,
    mean_output,
    span_means,
)
from steer2edit.models.batching import DEFAULT_BATCH_TOKENS, pad
from steer2edit.steering.behaviour_folder import find_behaviour

AIM = 0.95
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.05}
VERIFIED = 24  # responses compared one by one
Means = dict[Site, tuple[Tensor, Tensor]]


def given_responses(model: LanguageModel, count: int) -> list[EncodedResponse]:
    """Responses of two presets that come with them: nothing has to be generated, and lengths vary."""
    rows = [row for name in ("truthfulness", "conciseness") for row in find_behaviour(name).examples()]
    chosen = rows[:: max(1, len(rows) // count)][:count]
    return encode_responses(model, [(row.prompt, row.response or "") for row in chosen])


@torch.inference_mode()
def plain(model: LanguageModel, responses: Sequence[EncodedResponse], batch_tokens: int) -> None:
    for indices in length_batches([len(r.ids) for r in responses], batch_tokens):
        ids, mask = pad([responses[i].ids for i in indices], pad_id=0, device=model.device)
        model.network.base_model(input_ids=ids, attention_mask=mask, use_cache=False)


def capture(model: LanguageModel, responses: Sequence[EncodedResponse], batch_tokens: int) -> None:
    for _ in span_means(model, responses, batch_tokens=batch_tokens):
        pass


def official(model: LanguageModel, responses: Sequence[EncodedResponse]) -> Iterator[Means]:
    """(input mean, output mean) of every site, one response after another, in the model's dtype."""
    kept: dict[Site, tuple[Tensor, Tensor]] = {}

    def keep(site: Site) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            kept[site] = inputs[0].detach(), output.detach()

        return hook

    handles = [p.module.register_forward_hook(keep(site)) for site, p in model.sites.items()]
    try:
        for response in responses:
            ids = torch.tensor([response.ids], device=model.device)
            with torch.no_grad():
                model.network(input_ids=ids, attention_mask=torch.ones_like(ids))
            blocks = sorted({site.block for site in kept})
            yield {site: pair for block in blocks for site, pair in _stacked(kept, block, response.span).items()}
            kept.clear()
    finally:
        for handle in handles:
            handle.remove()


def _stacked(kept: Means, block: str, span: range) -> Means:
    """One block's kept activations stacked over layers, [layers, 1, tokens, width], then averaged over the span."""
    sites = [site for site in kept if site.block == block]
    inputs, outputs = (
        torch.stack([kept[site][which] for site in sites])[:, 0, span.start : span.stop].mean(dim=1).cpu()
        for which in (0, 1)
    )
    return {site: (inputs[i], outputs[i]) for i, site in enumerate(sites)}


def largest_difference(
    model: LanguageModel, responses: Sequence[EncodedResponse], batch_tokens: int
) -> dict[str, float]:
    """Largest relative difference of any site's mean of any response, for inputs and for outputs."""
    ours: dict[int, dict[Site, Tensor]] = {}
    for batch in span_means(model, responses, batch_tokens=batch_tokens):
        for row, index in enumerate(batch.rows):
            ours[index] = {site: means.input[row] for site, means in batch.sites.items()}
    worst = {"input": 0.0, "output": 0.0}
    for index, theirs in enumerate(official(model, responses)):
        for site, (x, y) in theirs.items():
            mean = ours[index][site]
            worst["input"] = max(worst["input"], _relative(mean, x))
            worst["output"] = max(worst["output"], _relative(mean_output(model, site, mean), y))
    return worst


def _relative(ours: Tensor, theirs: Tensor) -> float:
    a, b = ours.double().cpu(), theirs.double().cpu()
    return float((a - b).norm() / b.norm())


def verify(model: LanguageModel, responses: Sequence[EncodedResponse], batch_tokens: int) -> dict[str, Any]:
    dtype = str(model.dtype).removeprefix("torch.")
    worst = largest_difference(model, responses, batch_tokens)
    say(f"{dtype}: largest relative difference of a mean: {worst}")
    if not max(worst.values()) <= TOLERANCE[dtype]:
        raise SystemExit(f"WRONG: {dtype} means differ from the official way's by {worst}, not ≤ {TOLERANCE[dtype]}.")
    return {"largest_relative_difference": worst, "tolerance": TOLERANCE[dtype]}


def main(
    model: str = "smollm2",
    dtype: str = "auto",
    device: str = "auto",
    model_shape: Annotated[str | None, typer.Option(help="Random weights of this shape instead: 7b.")] = None,
    responses: Annotated[int, typer.Option(min=8, help="How many responses every arm reads.")] = 96,
    rounds: Annotated[int, typer.Option(min=5, help="Measured rounds, after one to warm up.")] = 5,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> None:
    say("loading")
    loaded = open_model(model, dtype, device, model_shape)
    encoded = given_responses(loaded, responses)
    some = encoded[:: max(1, len(encoded) // VERIFIED)]
    verified = {str(loaded.dtype).removeprefix("torch."): verify(loaded, some, batch_tokens)}
    if "float32" not in verified and model_shape is None:
        verified["float32"] = verify(load_model(model, dtype="float32", device=device), some, batch_tokens)
    seconds = in_turn(
        {
            "plain": lambda: plain(loaded, encoded, batch_tokens),
            "capture": lambda: capture(loaded, encoded, batch_tokens),
            "official": lambda: [None for _ in official(loaded, encoded)],
        },
        rounds,
    )
    tokens = sum(len(response.ids) for response in encoded)
    kept = paired_ratio(seconds["plain"], seconds["capture"])
    emit(
        "capture",
        n={"rounds": rounds, "responses": len(encoded), "tokens": tokens},
        model=loaded.name,
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        threads=torch.get_num_threads(),
        batch_tokens=batch_tokens,
        tokens_per_second={name: spread([tokens / s for s in taken], 0) for name, taken in seconds.items()},
        capture_over_plain=kept,
        capture_over_official=paired_ratio(seconds["official"], seconds["capture"]),
        aim={"capture_over_plain": AIM},
        met=kept["median"] >= AIM,
        verified=verified,
    )


if __name__ == "__main__":
    typer.run(main)
