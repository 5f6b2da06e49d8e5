"""`steer2edit demo`."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer2edit.cli.options import DeviceOption, DtypeOption, JsonOption, OverwriteOption, SeedOption

if TYPE_CHECKING:
    from steer2edit.evaluation import Condition


def demo(
    out: Annotated[Path, typer.Option(help="Directory for everything the demo writes.")] = Path("steer2edit-demo"),
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Make SmolLM2-135M refuse harmful requests more often, offline, in minutes, and show what it cost.

    Base, steered and edited model side by side on held-out prompts; the adapter, the checkpoint and report.html are
    written to --out.
    """
    from steer2edit.artifacts import atomic_directory
    from steer2edit.cli.console import print_conditions, print_json, say
    from steer2edit.demo import DemoSettings, run_demo
    from steer2edit.models import load_model
    from steer2edit.progress import show_progress

    begun = time.perf_counter()

    def narrate(text: str, conditions: Sequence["Condition"]) -> None:
        if json_output:
            return
        say(f"\n[{time.perf_counter() - begun:4.0f} s] {text}", style="bold")
        if conditions:
            print_conditions(conditions)

    with atomic_directory(out, overwrite=overwrite) as scratch, show_progress():
        model = load_model("smollm2", dtype=dtype, device=device)
        narrate(f"Loaded {model.name}: {len(model.sites)} sites.", [])
        results = run_demo(model, scratch, narrate, DemoSettings(seed=seed))
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
