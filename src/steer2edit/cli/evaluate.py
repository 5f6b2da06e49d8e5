"""`steer2edit evaluate`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer2edit.cli.arms import load_edits, load_steering, make_arms, parse_edit, parse_steering
from steer2edit.cli.engines import EngineOptions
from steer2edit.cli.options import (
    AllowMismatchOption,
    JsonOption,
    Judging,
    Loading,
    ModelArgument,
    OverwriteOption,
    ResultsOption,
    SplitOption,
)
from steer2edit.settings import shared

if TYPE_CHECKING:
    from steer2edit.evaluation import Arm, Condition
    from steer2edit.evaluation.harness_metrics import HarnessMetric
    from steer2edit.evaluation.judge import Judge
    from steer2edit.models import LanguageModel


def _list_tasks(wanted: bool) -> bool:
    """Show the tasks and end, if that is wanted."""
    if not wanted:
        return False
    from steer2edit.cli.console import say
    from steer2edit.evaluation import TASK_KINDS

    say("NAME measures on a built-in set; NAME=FILE or NAME=hub:OWNER/NAME/FILE on data with the columns named here.\n")
    for name, kind in TASK_KINDS.items():
        say(name, style="bold")
        say(f"  {kind.measures}\n  built in: {kind.built_in}")
        if kind.columns:
            say(f"  columns:  {kind.columns}")
    raise typer.Exit


def evaluate(
    model: ModelArgument,
    judging: Judging,
    engine: EngineOptions,
    loading: Loading,
    task: Annotated[
        list[str] | None,
        typer.Option(help="NAME, NAME=FILE or NAME=hub:OWNER/NAME/FILE; may be given several times. See --list."),
    ] = None,
    edit: Annotated[
        list[str] | None, typer.Option(metavar="DIR[:STRENGTH]", help="An edit; may be given several times.")
    ] = None,
    steer: Annotated[
        list[str] | None,
        typer.Option(metavar="VECTORS:STRENGTH", help="Activation steering; may be given several times."),
    ] = None,
    list_tasks: Annotated[
        bool,
        typer.Option("--list", is_eager=True, callback=_list_tasks, help="Show all tasks and their data."),
    ] = False,
    split: SplitOption = "validation",
    limit: shared.Limit = None,
    shuffle: Annotated[
        int | None, typer.Option(help="Seed of a random order of every set; its own by default.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest reply; each task has a default of its own.")
    ] = None,
    lm_eval: Annotated[
        list[str] | None,
        typer.Option(help="A task of the lm-evaluation-harness by name, or a task file; may be given several times."),
    ] = None,
    out: ResultsOption = None,
    allow_mismatch: AllowMismatchOption = False,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Measure a model, and edits and steering of it, side by side on the same items, with paired differences.

    \b
    Example:
    steer2edit evaluate smollm2 --edit edit --steer vectors.safetensors:0.2 \\
      --task safety --task mmlu
    """
    if not task and not lm_eval:
        raise typer.BadParameter("give at least one --task or --lm-eval; `steer2edit evaluate --list` shows the tasks.")
    if split not in ("validation", "held_out"):
        raise typer.BadParameter(f"--split must be validation or held_out, got {split!r}.")
    given_edits, given_vectors = [parse_edit(e) for e in edit or ()], [parse_steering(s) for s in steer or ()]
    from steer2edit.artifacts import require_free
    from steer2edit.artifacts.manifest import package_versions
    from steer2edit.cli.comparison import print_comparison, write_results
    from steer2edit.cli.console import print_json, say
    from steer2edit.evaluation import TaskSettings, build_tasks, compare, find_scorer
    from steer2edit.evaluation import evaluate as run_evaluation
    from steer2edit.progress import show_progress

    engine.require(steering=bool(steer))
    if out is not None:
        require_free(out, overwrite=overwrite)
    judge = judging.judge()
    settings = TaskSettings(split, limit, max_new_tokens, find_scorer(judging.scorer, judge), shuffle)  # type: ignore[arg-type]
    tasks = build_tasks(task or (), settings)
    edits, vectors = load_edits(given_edits), load_steering(given_vectors)
    with show_progress():
        like = [*(own.metadata for _, own in edits), *(own.metadata for _, own in vectors)]
        loaded = loading.load(model, *like, **({"device": "cpu"} if engine.engine == "vllm" else {}))
        arms = make_arms(loaded, edits, vectors, allow_mismatch=allow_mismatch)
        # the harness first: a task that it does not know shall not cost the work of the others
        harness = _harness(loaded, lm_eval, arms, limit) if lm_eval else [{} for _ in arms]
        with engine.running(loaded, steering=False) as runner:
            conditions = run_evaluation(runner, tasks, arms)
        conditions = [_with_harness(own, found) for own, found in zip(conditions, harness, strict=True)]
    comparisons = compare(conditions)
    results = {
        "schema_version": 1,
        "model": loaded.describe(),
        "engine": engine.engine,
        "tasks": list(task or ()),
        "lm_eval": list(lm_eval or ()),
        "split": split,
        "limit": limit,
        "shuffle": shuffle,
        "max_new_tokens": max_new_tokens,
        "versions": package_versions(),
        "scorer": _described(judging.scorer, judge),
        "prompts": {name: prompts for own in tasks for name, prompts in own.asked.items()},
        "conditions": [condition.to_json() for condition in conditions],
        "comparisons": comparisons,
    }
    if out is not None:
        write_results(results, out, overwrite=overwrite)
    if json_output:
        return print_json(results)
    print_comparison(conditions, comparisons)
    if judge is not None and judge.unscored:
        say("Judge, unscored: " + ", ".join(f"{count} {reason}" for reason, count in judge.unscored.items()))
    if out is not None:
        say(f"Results: {out}")
    return None


def _described(scorer: str, judge: "Judge | None") -> dict[str, Any]:
    """The scorer as it is recorded: never with a key."""
    if scorer != "judge" or judge is None:
        return {"name": scorer}
    return {"name": scorer, **judge.describe(), "unscored": dict(judge.unscored)}


def _harness(
    model: "LanguageModel", tasks: Sequence[str], arms: "Sequence[Arm]", limit: int | None
) -> "list[dict[str, HarnessMetric]]":
    from steer2edit.evaluation.harness import harness_results

    return harness_results(model, tasks, [arm.intervention for arm in arms], limit=limit)


def _with_harness(condition: "Condition", found: "Mapping[str, HarnessMetric]") -> "Condition":
    """The condition with the harness's metrics, `task.metric`, behind its own."""
    estimates = {name: metric.estimate for name, metric in found.items()}
    values = {name: list(metric.values) for name, metric in found.items() if metric.values is not None}
    return replace(condition, metrics={**condition.metrics, **estimates}, values={**condition.values, **values})
