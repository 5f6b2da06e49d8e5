"""Extraction's peak memory: does it depend on how many responses are read?

The physics. Extraction keeps, per site, float64 sums over each class: 4 × m numbers, whatever the number of
responses. What is large is one batch: its activations in the forward pass, bounded by the batch's token budget.
So the peak is (model) + (one batch) + (a constant), and 500 responses peak where 50 do. Keeping every response's
means instead, as the official Steer2Edit code does, adds Σ_sites m numbers per response: 63,360 for SmolLM2
(input means alone), 0.25 MB in float32.

Each measurement is a process of its own, because memory that was once allocated does not come back. The processes
read the same responses, over and over, so that lengths are the same; the token budget is small enough that even 50
responses fill a batch. After loading, the process's high-water mark is reset (/proc/self/clear_refs, Linux), since
loading itself would otherwise set it; elsewhere it cannot be, and the benchmark says so.

Verified: the measurement can fail. A `control` process extracts from the most responses and keeps all their means:
its peak must be higher, by at least half of what they weigh. And the vectors are right: reading every response
twice or ten times instead of once leaves each class mean where it was.
"""

import json
import math
import os
import resource
import subprocess
import sys
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import typer
from timing import emit, say, spread

SIZES = (50, 150, 500)
SOURCE_ROWS = 25  # of each class; every size is a multiple, so that each reads the same mixture
LABELS = ("positive", "negative")
AIM = 1.05
_STATUS = Path("/proc/self/status")


def high_water_mark() -> float:
    """Largest resident set so far, since the last reset, in MB."""
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def reset_high_water_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def measure(model_name: str, responses: int, batch_tokens: int, keep: bool) -> dict[str, Any]:
    """In a process of its own: extract, and say what it took."""
    import torch

    from steer2edit.models import load_model
    from steer2edit.models import span_means as given
    from steer2edit.steering import Contrast, ContrastSet, preset_examples
    from steer2edit.steering import extract as extraction

    rows = preset_examples("truthfulness")[0]
    given_pairs = {label: [(r.prompt, r.response or "") for r in rows if r.label == label] for label in LABELS}
    positive, negative = (tuple(islice(cycle(given_pairs[label][:SOURCE_ROWS]), responses // 2)) for label in LABELS)
    contrast = ContrastSet("memory", {"train": Contrast(positive, negative)}, {})
    model = load_model(model_name)
    hoard: list[Any] = []
    if keep:
        module = sys.modules["steer2edit.steering.extract"]

        def keeping(*args: Any, **options: Any) -> Any:
            for indices, means in given(*args, **options):
                hoard.append({site: mean.clone() for site, mean in means.items()})
                yield indices, means

        module.span_means = keeping  # type: ignore[attr-defined]
    exact = reset_high_water_mark()
    loaded = high_water_mark()
    vectors = extraction(model, contrast, batch_tokens=batch_tokens)
    return {
        "exact": exact,
        "loaded_mb": loaded,
        "peak_mb": high_water_mark(),
        "kept_mb": sum(mean.nbytes for batch in hoard for mean in batch.values()) / 1024**2,
        "vectors": [float(torch.linalg.vector_norm(m.steering_vector)) for m in vectors.sites.values()],
    }


def in_own_process(model: str, responses: int, batch_tokens: int, keep: bool = False) -> dict[str, Any]:
    command = [sys.executable, __file__, "--model", model, "--batch-tokens", str(batch_tokens)]
    command += ["--child", str(responses), *(["--keep"] if keep else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ))
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    kind = "control" if keep else "extract"
    say(f"{kind} {responses}: peak {result['peak_mb']:.1f} MB, of which {result['loaded_mb']:.1f} MB were loaded")
    return result


def same_vectors(results: list[dict[str, Any]]) -> float:
    """Largest relative difference of any site's ‖v‖ between two measurements."""
    sites = zip(*(result["vectors"] for result in results), strict=True)
    return max((max(norms) - min(norms)) / min(norms) for norms in sites)


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
    peaks = {size: [r["peak_mb"] for r in results[size]] for size in SIZES}
    ratio = spread([b / a for a, b in zip(peaks[SIZES[0]], peaks[SIZES[-1]], strict=True)])
    detected = control["peak_mb"] - spread(peaks[SIZES[-1]])["median"]
    if control["exact"] and not detected >= control["kept_mb"] / 2:
        raise SystemExit(f"WRONG: the control keeps {control['kept_mb']:.1f} MB more, but {detected:.1f} MB were seen.")
    difference = same_vectors([r for size in SIZES for r in results[size]])
    if not (math.isfinite(difference) and difference <= 0.02):
        raise SystemExit(f"WRONG: the same responses gave vectors whose norms differ by {difference:.1%}.")
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
        verified={
            "control_keeps_mb": round(control["kept_mb"], 1),
            "control_peaks_higher_by_mb": round(detected, 1),
            "largest_relative_difference_of_vector_norms": difference,
        },
    )


if __name__ == "__main__":
    typer.run(main)
