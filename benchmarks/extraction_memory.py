"""Extraction's peak memory: does it depend on how many responses are read?

The physics. Extraction keeps, per site, float64 sums over each class: 4 × m numbers, whatever the number of
responses. What is large is one batch: its activations in the forward pass, bounded by the batch's token budget.
So the peak is (model) + (one batch) + (a constant), and 500 responses peak where 50 do. Keeping every response's
means instead, as the official Steer2Edit code does, adds Σ_sites m numbers per response: 63,360 for SmolLM2
(input means alone), 0.25 MB in float32.

Two other things must be held still to see that. glibc keeps freed blocks in a heap that it fragments by luck
(hundreds of MB, another amount in every run), so it is told to give every block over 64 kB back when it is freed:
what is resident is then what is alive. And on a CPU, oneDNN compiles kernels for each new batch shape and caches
them, up to a limit (SmolLM2: some 30 MB when lengths vary), so the responses read here all have the same number of
tokens, and a token budget that even 50 of them fill.

Each measurement is a process of its own. After loading and a first pass (weights are paged in on first use), the
process's high-water mark is reset (/proc/self/clear_refs, Linux); where that cannot be done, the mark includes
loading, and `exact_high_water_mark` is false.

Verified: the measurement can fail. A `control` process keeps the means of the most responses: its peak must be
higher, by at least half of what they weigh. And the vectors are right: reading every response fifteen or fifty times
instead of five leaves each class mean, and so each vector, where it was.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import typer
from timing import emit, paired_ratio, say, spread

SIZES = (50, 150, 500)
ROWS = 5  # different responses of each class, of one length; every size reads all of them equally often
AIM = 1.05
TOLERANCE = 0.02
_STATUS = Path("/proc/self/status")
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
Pairs = list[tuple[Any, str]]


def high_water_mark() -> float:
    """Largest resident set so far, since the last reset, in MB."""
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def reset_high_water_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def equally_long(model: Any) -> tuple[Pairs, Pairs]:
    """Positive and negative responses of a preset that all have the same number of tokens with their prompts."""
    from steer2edit.models import encode_responses
    from steer2edit.steering.behaviour_folder import find_behaviour

    by_length: dict[int, dict[str, Pairs]] = {}
    rows = [(row, (row.prompt, row.response or "")) for row in find_behaviour("truthfulness").examples()]
    for (row, pair), encoded in zip(rows, encode_responses(model, [pair for _, pair in rows]), strict=True):
        by_length.setdefault(len(encoded.ids), {"positive": [], "negative": []})[str(row.label)].append(pair)
    best = max(by_length.values(), key=lambda classes: min(len(pairs) for pairs in classes.values()))
    if min(len(pairs) for pairs in best.values()) < ROWS:
        raise SystemExit(f"this tokenizer gives no {ROWS} responses of each class the same length: lower ROWS.")
    return best["positive"][:ROWS], best["negative"][:ROWS]


def measure(model_name: str, responses: int, batch_tokens: int, keep: bool) -> dict[str, Any]:
    """In a process of its own: extract (or capture and keep), and say what it took."""
    from steer2edit.models import encode_responses, load_model, span_means
    from steer2edit.steering.contrast import Contrast, ContrastSet
    from steer2edit.steering.extract import extract

    model = load_model(model_name)
    positive, negative = (tuple(islice(cycle(pairs), responses // 2)) for pairs in equally_long(model))

    def vectors(count: int) -> Any:
        contrast = ContrastSet("memory", {"train": Contrast(positive[:count], negative[:count])}, {})
        return extract(model, contrast, batch_tokens=batch_tokens)

    vectors(1)
    exact = reset_high_water_mark()
    loaded = high_water_mark()
    result: dict[str, Any] = {"exact": exact, "loaded_mb": loaded}
    if keep:
        kept = list(span_means(model, encode_responses(model, positive + negative), batch_tokens=batch_tokens))
        result["kept_mb"] = sum(means.input.nbytes for batch in kept for means in batch.sites.values()) / 1024**2
    else:
        sites = vectors(len(positive)).sites.values()
        result["norms"] = [float(means.steering_vector.norm()) for means in sites]
    return {**result, "peak_mb": high_water_mark()}


def in_own_process(model: str, responses: int, batch_tokens: int, keep: bool = False) -> dict[str, Any]:
    command = [sys.executable, __file__, "--model", model, "--batch-tokens", str(batch_tokens)]
    command += ["--child", str(responses), *(["--keep"] if keep else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **_GIVE_BACK})
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    kind = "control" if keep else "extract"
    say(f"{kind} {responses}: peak {result['peak_mb']:.1f} MB, of which {result['loaded_mb']:.1f} MB were loaded")
    return result


def verify(results: dict[int, list[dict[str, Any]]], control: dict[str, Any]) -> dict[str, float]:
    detected = control["peak_mb"] - statistics.median(r["peak_mb"] for r in results[SIZES[-1]])
    if control["exact"] and not detected >= control["kept_mb"] / 2:
        raise SystemExit(f"WRONG: the control keeps {control['kept_mb']:.1f} MB more, but {detected:.1f} MB were seen.")
    by_site = zip(*(result["norms"] for size in SIZES for result in results[size]), strict=True)
    difference = max((max(norms) - min(norms)) / min(norms) for norms in by_site)
    if not difference <= TOLERANCE:
        raise SystemExit(f"WRONG: the same responses gave vectors whose lengths differ by {difference:.1%}.")
    return {
        "control_keeps_mb": round(control["kept_mb"], 1),
        "control_peaks_higher_by_mb": round(detected, 1),
        "largest_relative_difference_of_vector_lengths": difference,
        "tolerance": TOLERANCE,
    }


def main(
    model: str = "smollm2",
    rounds: Annotated[int, typer.Option(min=1, help="Processes per size; sizes take turns.")] = 5,
    batch_tokens: Annotated[int, typer.Option(help="Small enough that the smallest size fills a batch.")] = 1024,
    child: Annotated[int | None, typer.Option(hidden=True)] = None,
    keep: Annotated[bool, typer.Option("--keep", hidden=True)] = False,
) -> None:
    if child is not None:
        print(json.dumps(measure(model, child, batch_tokens, keep)))
        return
    results: dict[int, list[dict[str, Any]]] = {size: [] for size in SIZES}
    for _ in range(rounds):
        for size in SIZES:
            results[size].append(in_own_process(model, size, batch_tokens))
    control = in_own_process(model, SIZES[-1], batch_tokens, keep=True)
    verified = verify(results, control)
    peaks = {size: [r["peak_mb"] for r in results[size]] for size in SIZES}
    ratio = paired_ratio(peaks[SIZES[-1]], peaks[SIZES[0]])
    emit(
        "extraction_memory",
        n={"rounds": rounds, "responses": SIZES},
        model=model,
        batch_tokens=batch_tokens,
        exact_high_water_mark=control["exact"],
        peak_mb={size: spread(peaks[size], 1) for size in SIZES},
        above_loaded_mb={size: spread([r["peak_mb"] - r["loaded_mb"] for r in results[size]], 1) for size in SIZES},
        most_over_fewest=ratio,
        aim={"most_over_fewest": AIM},
        met=ratio["median"] <= AIM,
        verified=verified,
    )


if __name__ == "__main__":
    typer.run(main)
