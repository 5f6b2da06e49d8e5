"""`steer2edit demo`."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from steer2edit.cli.command import typed
from steer2edit.cli.options import JsonOption, OverwriteOption, Placing
from steer2edit.settings import shared


def demo(
    placing: Placing,
    out: Annotated[Path, typer.Option(help="Directory for everything the demo writes.")] = Path("steer2edit-demo"),
    seed: shared.Seed = 0,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Make SmolLM2-135M refuse harmful requests more often, offline, in minutes, and show what it cost.

    Base, steered and edited model side by side on held-out prompts; the adapter, the checkpoint and report.html are
    written to --out.
    """
    from steer2edit.artifacts import atomic_directory
    from steer2edit.cli.console import narrator, print_json, say
    from steer2edit.models import load_model
    from steer2edit.progress import show_progress
    from steer2edit.recipes import DemoSettings, run_demo

    begun = time.perf_counter()
    narrate = narrator(json_output, begun)
    with atomic_directory(out, overwrite=overwrite) as scratch, show_progress():
        model = load_model("smollm2", **vars(placing))
        narrate(f"Loaded {model.name}: {len(model.sites)} sites.", [])
        results = run_demo(model, scratch, narrate, DemoSettings(seed=seed), typed())
    if json_output:
        return print_json(results)
    _print_replies(results)
    say(f"\nDone in {time.perf_counter() - begun:.0f} s.", style="bold")
    for name, what in _WRITTEN.items():
        say(f"  {out / name}  {what}")
    return None


_WRITTEN = {
    "report.html": "the report; open it in a browser",
    "edit": "the edit as a PEFT adapter, with its model card",
    "checkpoint": "the edited model; loads like any other",
    "vectors.safetensors": "the steering vectors",
    "results.json": "every figure and reply",
}


def _print_replies(results: dict[str, Any], count: int = 2) -> None:
    """Replies of every condition in full, for the first prompts of each kind whose refusal the edit changed."""
    from steer2edit.cli.console import say

    conditions = results["held_out"]["conditions"]
    for kind, texts in results["prompts"].items():
        before, after = (conditions[i]["outcomes"][kind] for i in (0, -1))
        changed = [i for i in range(len(texts)) if before[i] != after[i]]
        say(f"\n{kind}: the edit changed {len(changed)} of {len(texts)} verdicts; the first {count}:", style="bold")
        for index in changed[:count]:
            say(f"  {texts[index]}")
            for condition in conditions:
                say(f"    {condition['label']}: {' '.join(condition['replies'][kind][index].split())}")
