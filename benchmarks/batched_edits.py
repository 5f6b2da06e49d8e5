"""A batch whose rows carry different edits: how much of the same batch's speed without any edit is left?

The physics. A row's edit adds (x · a) u to a site's output: 2m + 2d operations next to the projection's own 2md, less
than 1 % of it at d = 576 and 0.1 % at d = 4096. All edits made from one set of vectors share u, so only the rows a
differ, one per row of the batch: m numbers each, read once per token as x is. What costs is not arithmetic but the
number of small operations (on a CPU a few microseconds each, on a GPU a kernel launch each, per site and token: 60
sites in SmolLM2, 64 in a 7B model) and, over a prompt, one float32 copy of x, since x · a is accumulated in float32.
The aim is 0.95 of the speed without.

Arms, in turn, all on the same prompts, the same number of rows and of new tokens (no reply ends by itself):
`plain` (no intervention), `one` (one edit for all rows), `different` (a different edit in every row: configurations
over (ρ_attn, ρ_mlp, α), all sites, all from one `compute_factors`).

Verified, in float32: rows of the mixed batch give the same greedy tokens as the model whose weights hold that row's
edit alone, and the log-probabilities of those tokens are within 1e-4; and the edits differ from one another.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import typer
from model_shapes import never_ending, open_model
from timing import emit, in_turn, median_interval, paired_ratio, say, spread

from steer2edit.core import Editing, WeightEdit
from steer2edit.editing import compute_factors, intervened, merged
from steer2edit.method.hyperparameters import grid
from steer2edit.models import (
    EncodedResponse,
    LanguageModel,
    Sampling,
    encode_prompts,
    generate_batch,
    span_log_probabilities,
    token_log_probabilities,
)
from steer2edit.steering.contrast import load_contrast
from steer2edit.steering.extract import extract
from steer2edit.steering.presets import safety_prompts

AIM = 0.95
TOLERANCE = 1e-4
VERIFIED = 4  # rows compared with weights that hold their edit
Rows = list[list[int]]


def different_edits(model: LanguageModel, count: int) -> list[WeightEdit]:
    """Configurations that edit every site, none like another, limited so that the model stays sane."""
    vectors = extract(model, load_contrast("truthfulness", model, limit=8))
    configurations = grid(_between(0.15, 0.45, -(-count // 4)), _between(0.5, 0.8, 2), (0.05, 0.2))[:count]
    return [edit.scaled(0.3) for edit in compute_factors(model, vectors, force=True).edits(configurations)]


def _between(low: float, high: float, count: int) -> list[float]:
    return [low + (high - low) * i / max(1, count - 1) for i in range(count)]


def prompts_for(model: LanguageModel, count: int) -> Rows:
    prompts = [p for part in safety_prompts("validation") for p in part]
    return encode_prompts(model, [prompts[i % len(prompts)] for i in range(count)])


def verify(model: LanguageModel, edits: Sequence[WeightEdit], prompts: Rows, sampling: Sampling) -> dict[str, Any]:
    rows = [Editing(edit) for edit in edits]
    with intervened(model, rows):
        replies = generate_batch(model, prompts, sampling)
        given = [EncodedResponse((*p, *r.ids), len(p)) for p, r in zip(prompts, replies, strict=True)]
        together = span_log_probabilities(model, given)
    worst = 0.0
    for row in range(0, len(edits), max(1, len(edits) // VERIFIED)):
        with merged(model, edits[row]):
            (alone,) = generate_batch(model, [prompts[row]], sampling)
            (expected,) = span_log_probabilities(model, [given[row]])
        if alone.ids != replies[row].ids:
            raise SystemExit(f"WRONG: row {row} of the mixed batch says {replies[row].text!r}, alone {alone.text!r}.")
        difference = token_log_probabilities(together[row], given[row]) - token_log_probabilities(expected, given[row])
        worst = max(worst, float(difference.abs().max()))
    if not worst <= TOLERANCE:
        raise SystemExit(f"WRONG: log-probabilities differ from the edited weights' by {worst}, not ≤ {TOLERANCE}.")
    distinct = len({reply.ids for reply in generate_under(model, rows, [prompts[0]] * len(edits), sampling)})
    say(f"same tokens as in the weights; largest difference {worst:.1e}; {distinct} different replies to one prompt")
    return {"largest_log_probability_difference": worst, "tolerance": TOLERANCE, "different_replies": distinct}


def generate_under(model: LanguageModel, rows: Sequence[Editing], prompts: Rows, sampling: Sampling) -> list[Any]:
    with intervened(model, rows):
        return generate_batch(model, prompts, sampling)


def measure(
    model: LanguageModel, edits: Sequence[WeightEdit], prompts: Rows, sampling: Sampling, rounds: int
) -> dict[str, Any]:
    rows = [Editing(edit) for edit in edits]
    short = [r for r in generate_under(model, rows, prompts, sampling) if len(r.ids) != sampling.max_new_tokens]
    if short:
        raise SystemExit(f"WRONG: {len(short)} replies do not have {sampling.max_new_tokens} tokens: no equal work.")
    seconds = in_turn(
        {
            "plain": lambda: generate_batch(model, prompts, sampling),
            "one": lambda: generate_under(model, rows[:1], prompts, sampling),
            "different": lambda: generate_under(model, rows, prompts, sampling),
        },
        rounds,
    )
    tokens = len(prompts) * sampling.max_new_tokens
    ratios = [a / b for a, b in zip(seconds["plain"], seconds["different"], strict=True)]
    return {
        "tokens_per_second": {name: spread([tokens / s for s in taken], 1) for name, taken in seconds.items()},
        "different_over_plain": {**paired_ratio(seconds["plain"], seconds["different"]), **median_interval(ratios)},
        "one_over_plain": paired_ratio(seconds["plain"], seconds["one"]),
        "different_over_one": paired_ratio(seconds["one"], seconds["different"]),
    }


def main(
    model: str = "smollm2",
    device: str = "auto",
    model_shape: Annotated[str | None, typer.Option(help="Random weights of this shape instead: 7b.")] = None,
    dtypes: Annotated[str, typer.Option(help="One JSON line for each.")] = "bfloat16,float32",
    edits: Annotated[int, typer.Option(min=2, help="Rows of the batch, each with an edit of its own.")] = 32,
    new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    rounds: Annotated[int, typer.Option(min=5, help="Measured rounds, after one to warm up.")] = 9,
) -> None:
    for dtype in dtypes.split(","):
        say(f"loading in {dtype}")
        loaded = open_model(model, dtype, device, model_shape)
        never_ending(loaded)
        chosen, prompts = different_edits(loaded, edits), prompts_for(loaded, edits)
        sampling = Sampling(max_new_tokens=new_tokens)
        verified = verify(loaded, chosen, prompts, Sampling(max_new_tokens=8)) if dtype == "float32" else None
        measured = measure(loaded, chosen, prompts, sampling, rounds)
        emit(
            "batched_edits",
            n={"rounds": rounds, "rows": edits, "new_tokens": new_tokens, "prompt_tokens": sum(map(len, prompts))},
            model=loaded.name,
            dtype=dtype,
            device=str(loaded.device),
            threads=torch.get_num_threads(),
            sites_edited=len(chosen[0].sites),
            **measured,
            aim={"different_over_plain": AIM},
            met=measured["different_over_plain"]["median"] >= AIM,
            verified=verified,
        )
        del loaded, chosen


if __name__ == "__main__":
    typer.run(main)
