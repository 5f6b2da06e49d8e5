"""Commands that measure edits and steering, given as PATH:STRENGTH, side by side: `evaluate`, `steer`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from steer2edit.cli.console import print_conditions, print_table, print_unscored, say
from steer2edit.cli.late import api, artifacts, engines, evaluation, steering
from steer2edit.cli.options import EngineOptions, Judging, Measuring, ModelArgument, VectorsArgument, listing, load
from steer2edit.errors import InvalidValueError
from steer2edit.estimates import Condition
from steer2edit.settings import Loading, shared
from steer2edit.settings.declared import Checked, read_numbers


class Given(NamedTuple):
    """An artifact with the strengths it is to be used at."""

    path: Path
    strengths: tuple[float, ...]
    artifact: Any


def load_given(texts: Sequence[str], load: Callable[[Path], Any], strengths: tuple[float, ...] = ()) -> list[Given]:
    """The artifacts of every PATH:STRENGTH (or several, PATH:0.5,1); `strengths` are those where none is given."""
    found = []
    for text in texts:
        path, _, tail = text.rpartition(":")  # it may have colons of its own: what follows the last counts if numbers
        try:
            own = read_numbers("", tail) if path else ()
        except InvalidValueError:
            own = ()
        if not own and not strengths:
            raise typer.BadParameter(f"--steer takes VECTORS:STRENGTH, as in vectors.safetensors:0.2, got {text!r}.")
        if not all(map(math.isfinite, own)):
            raise typer.BadParameter(f"a strength must be a finite number, got {text!r}.")
        place = Path(path if own else text)
        found.append(Given(place, own or strengths, load(place)))
    return found


@dataclass(frozen=True)
class Interventions(Checked):
    """Edits and steering that are compared with the base.

    Args:
        edit: An edit; may be given several times.
        steer: Activation steering; may be given several times.
    """

    edit: Annotated[list[str] | None, typer.Option(metavar="DIR[:STRENGTH]")] = None
    steer: Annotated[list[str] | None, typer.Option(metavar="VECTORS:STRENGTH")] = None
    allow_mismatch: shared.AllowMismatch = False

    def arms(self) -> "list[evaluation.Arm]":
        """The base, then steering, then edits, before a model is loaded: a wrong path shall show at once."""
        steering = load_given(self.steer or (), artifacts.load_vectors)
        edits = load_given(self.edit or (), artifacts.load_edit, (1.0,))
        arms, several = [evaluation.BASE_ARM], len({one.path for one in steering}) > 1
        for one, name in zip(steering, _names(steering), strict=True):
            own = [evaluation.steering_arm(one.artifact, strength) for strength in one.strengths]
            arms += [replace(arm, label=f"{arm.label} {name}") for arm in own] if several else own
        for edit, name in zip(edits, _names(edits), strict=True):
            for strength in edit.strengths:
                label = name if strength == 1 else f"{name} × {strength:g}"
                arms.append(evaluation.edit_arm(edit.artifact, label, strength))
        return arms

    def load(self, model: str, loading: Loading, arms: "Sequence[evaluation.Arm]", **changed: Any) -> Any:
        """The model of the arms, loaded as what they use was made; a MismatchError where that is of another."""
        used = [getattr(arm.intervention, "vectors" if arm.kind == "steering" else "edit") for arm in arms[1:]]
        loaded = load(model, loading, *(one.metadata for one in used), **changed)
        for one in used:
            loaded.require_fit(one, allow_mismatch=self.allow_mismatch)
        return loaded


def _names(given: Sequence[Given]) -> list[str]:
    """The last parts of the paths where those tell different paths apart, else the paths."""
    paths = [one.path.resolve() for one in given]
    short = {path: path.name for path in paths}
    unique = len(set(short.values())) == len(short)
    return [short[path] if unique else str(one.path) for one, path in zip(given, paths, strict=True)]


def _list_tasks() -> None:
    say("NAME measures on a built-in set; NAME=FILE or NAME=hub:OWNER/NAME/FILE on data with the columns named here.\n")
    for name, kind in evaluation.TASK_KINDS.items():
        say(name, style="bold")
        say(f"  {kind.measures}\n  built in: {kind.built_in}")
        if kind.columns:
            say(f"  columns:  {kind.columns}")


def evaluate(
    model: ModelArgument,
    interventions: Interventions,
    measuring: Measuring,
    judging: Judging,
    engine: EngineOptions,
    loading: Loading,
    task: Annotated[list[str] | None, typer.Option("--task", "--behaviour")] = None,
    list_tasks: Annotated[bool, listing(_list_tasks, "Show all tasks and their data.")] = False,
    shuffle: int | None = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    lm_eval: list[str] | None = None,
) -> dict[str, Any]:
    """Measure a model, and edits and steering of it, side by side on the same items, with paired differences.

    \b
    Example:
    steer2edit evaluate smollm2 --edit edit --steer vectors.safetensors:0.2 \\
      --task safety --task mmlu

    Args:
        task: NAME, NAME=FILE or NAME=hub:OWNER/NAME/FILE, a behaviour's folder or a contrast file; may be given several
            times. See --list.
        shuffle: Seed of a random order of every set; its own by default.
        max_new_tokens: Longest reply; each task has a default of its own.
        lm_eval: A task of the lm-evaluation-harness by name, or a task file; may be given several times.
    """
    if not task and not lm_eval:
        raise typer.BadParameter("give at least one --task or --lm-eval; `steer2edit evaluate --list` shows the tasks.")

    if interventions.steer and engine.engine == "vllm":
        raise InvalidValueError("vLLM runs edits only: leave --steer out, or use --engine transformers.")
    measuring.require_free()
    arms, judge = interventions.arms(), judging.judge()
    settings = evaluation.TaskSettings(
        measuring.split, measuring.limit, max_new_tokens, evaluation.find_scorer(judging.scorer, judge), shuffle
    )
    tasks, specs = evaluation.build_tasks(task or (), settings), list(task or ())
    loaded = interventions.load(model, loading, arms, **({"device": "cpu"} if engine.engine == "vllm" else {}))
    # the harness first: a task that it does not know shall not cost the work of the others
    harness: list[dict[str, evaluation.HarnessMetric]] = [{} for _ in arms]
    if lm_eval:
        asked = [arm.intervention for arm in arms]
        harness = evaluation.harness_results(loaded, lm_eval, asked, limit=measuring.limit)
    with engine.running(loaded, steering=False) as runner:
        conditions = evaluation.evaluate(runner, tasks, arms)
    conditions = [_with_harness(own, found) for own, found in zip(conditions, harness, strict=True)]
    comparisons = evaluation.compare(conditions)
    results = {
        "schema_version": 1,
        "model": loaded.describe(),
        "engine": engine.engine,
        "tasks": specs,
        "lm_eval": list(lm_eval or ()),
        "split": measuring.split,
        "limit": measuring.limit,
        "shuffle": shuffle,
        "max_new_tokens": max_new_tokens,
        "versions": artifacts.package_versions(),
        "scorer": {"name": judging.scorer, **(judge.describe() | {"unscored": {**judge.unscored}} if judge else {})},
        "prompts": {name: prompts for own in tasks for name, prompts in own.asked.items()},
        "conditions": [condition.to_json() for condition in conditions],
        "comparisons": comparisons,
        "unscored": evaluation.unscored_reasons(tasks),
    }

    print_conditions(conditions, "95 % intervals")
    if any(one["differences"] for one in comparisons):
        say()
        print_table(*api.showing.difference_rows(comparisons), api.showing.LESS_BASE)
    print_unscored(evaluation.unscored_reasons(tasks))
    measuring.write(results)
    return results


def _with_harness(condition: Condition, found: "Mapping[str, evaluation.HarnessMetric]") -> Condition:
    """The condition with the harness's metrics, `task.metric`, behind its own."""
    estimates = {name: metric.estimate for name, metric in found.items()}
    values = {name: list(metric.values) for name, metric in found.items() if metric.values is not None}
    return replace(condition, metrics={**condition.metrics, **estimates}, values={**condition.values, **values})


def steer(
    model: ModelArgument,
    vectors: VectorsArgument,
    measuring: Measuring,
    loading: Loading,
    strength: Annotated[str, typer.Option(help="Strengths, separated by commas.")] = "0,0.1,0.2,0.3",
    evaluate: shared.Behaviour = None,
    max_new_tokens: shared.MaxNewTokens = None,
    allow_mismatch: shared.AllowMismatch = False,
) -> dict[str, Any]:
    """Validate vectors by activation steering: how the attribute and the damage grow with strength.

    \b
    Example:
    steer2edit steer smollm2 vectors.safetensors --strength 0,0.1,0.2,0.3 \\
      --evaluate safety
    """
    strengths = read_numbers("--strength", strength)

    measuring.require_free()
    loaded_vectors = artifacts.load_vectors(vectors)
    split, source = measuring.split, evaluate or evaluation.behaviour_of(loaded_vectors, "--evaluate")
    chosen = evaluation.behaviour(source, split, limit=measuring.limit, max_new_tokens=max_new_tokens)
    seen = loaded_vectors.metadata.get("prompts", ())
    steering.examples.require_no_overlap({"vector": seen, split.replace("_", "-"): chosen.digests})
    loaded = load(model, loading, loaded_vectors.metadata)
    loaded.require_fit(loaded_vectors, allow_mismatch=allow_mismatch)
    arms = [evaluation.steering_arm(loaded_vectors, value) if value else evaluation.BASE_ARM for value in strengths]
    conditions = evaluation.evaluate(engines.TransformersEngine(loaded), chosen.tasks, arms)
    results = {
        "schema_version": 1,
        "model": loaded.describe(),
        "behaviour": chosen.name,
        "split": split,
        "prompts": chosen.prompts,
        "conditions": [condition.to_json() for condition in conditions],
        "unscored": chosen.unscored,
    }
    print_conditions(conditions, f"{chosen.name}, {split} prompts, 95 % intervals")
    print_unscored(chosen.unscored)
    measuring.write(results)
    return results
