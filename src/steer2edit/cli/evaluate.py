"""`steer2edit evaluate`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer2edit.cli.arms import Interventions
from steer2edit.cli.engines import EngineOptions
from steer2edit.cli.options import Judging, Loading, Measuring, ModelArgument

if TYPE_CHECKING:
    from steer2edit.evaluation import Condition
    from steer2edit.evaluation.harness_metrics import HarnessMetric
    from steer2edit.evaluation.judge import Judge


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
    interventions: Interventions,
    measuring: Measuring,
    judging: Judging,
    engine: EngineOptions,
    loading: Loading,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            "--behaviour",
            help="NAME, NAME=FILE or NAME=hub:OWNER/NAME/FILE, a behaviour's folder or a contrast file; may be given "
            "several times. See --list.",
        ),
    ] = None,
    list_tasks: Annotated[
        bool,
        typer.Option("--list", is_eager=True, callback=_list_tasks, help="Show all tasks and their data."),
    ] = False,
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
) -> None:
    """Measure a model, and edits and steering of it, side by side on the same items, with paired differences.

    \b
    Example:
    steer2edit evaluate smollm2 --edit edit --steer vectors.safetensors:0.2 \\
      --task safety --task mmlu
    """
    if not task and not lm_eval:
        raise typer.BadParameter("give at least one --task or --lm-eval; `steer2edit evaluate --list` shows the tasks.")
    from steer2edit.api.tables import LESS_BASE, difference_rows
    from steer2edit.artifacts.manifest import package_versions
    from steer2edit.cli.console import print_conditions, print_table, print_unscored, say
    from steer2edit.evaluation import TaskSettings, build_tasks, compare, find_scorer, unscored_reasons
    from steer2edit.evaluation import evaluate as run_evaluation
    from steer2edit.progress import show_progress

    engine.require(steering=bool(interventions.steer))
    measuring.require_free()
    given = interventions.load()
    judge = judging.judge()
    settings = TaskSettings(
        measuring.split, measuring.limit, max_new_tokens, find_scorer(judging.scorer, judge), shuffle
    )
    tasks = build_tasks(task or (), settings)
    with show_progress():
        loaded = loading.load(model, *given.metadata, **({"device": "cpu"} if engine.engine == "vllm" else {}))
        arms = given.arms(loaded)
        # the harness first: a task that it does not know shall not cost the work of the others
        harness: list[dict[str, HarnessMetric]] = [{} for _ in arms]
        if lm_eval:
            from steer2edit.evaluation.harness import harness_results

            harness = harness_results(loaded, lm_eval, [arm.intervention for arm in arms], limit=measuring.limit)
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
        "split": measuring.split,
        "limit": measuring.limit,
        "shuffle": shuffle,
        "max_new_tokens": max_new_tokens,
        "versions": package_versions(),
        "scorer": _described(judging.scorer, judge),
        "prompts": {name: prompts for own in tasks for name, prompts in own.asked.items()},
        "conditions": [condition.to_json() for condition in conditions],
        "comparisons": comparisons,
        "unscored": unscored_reasons(tasks),
    }

    def show() -> None:
        print_conditions(conditions, "95 % intervals")
        if any(one["differences"] for one in comparisons):
            say()
            print_table(*difference_rows(comparisons), LESS_BASE)
        print_unscored(unscored_reasons(tasks))

    measuring.hand_out(results, show)


def _described(scorer: str, judge: "Judge | None") -> dict[str, Any]:
    """The scorer as it is recorded: never with a key."""
    if scorer != "judge" or judge is None:
        return {"name": scorer}
    return {"name": scorer, **judge.describe(), "unscored": dict(judge.unscored)}


def _with_harness(condition: "Condition", found: "Mapping[str, HarnessMetric]") -> "Condition":
    """The condition with the harness's metrics, `task.metric`, behind its own."""
    estimates = {name: metric.estimate for name, metric in found.items()}
    values = {name: list(metric.values) for name, metric in found.items() if metric.values is not None}
    return replace(condition, metrics={**condition.metrics, **estimates}, values={**condition.values, **values})
