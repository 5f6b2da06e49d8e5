"""Any task of the lm-evaluation-harness, on the base and under interventions, in the process that holds the model.

The harness's own transformers wrapper runs our loaded network, with interventions as hooks. What it reports becomes
estimates with 95 % intervals, item by item where it gives items.
"""

import copy
import difflib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steer2edit.core import Intervention
from steer2edit.editing import intervened
from steer2edit.errors import DataError, InvalidValueError, ModelError
from steer2edit.estimates import Estimate, Value
from steer2edit.evaluation.statistics import estimate, reported_mean
from steer2edit.models import LanguageModel
from steer2edit.models.chat import require_rows
from steer2edit.models.generation import generating
from steer2edit.progress import step


@dataclass(frozen=True)
class HarnessMetric:
    """One metric of one harness task under one intervention.

    The interval is Wilson's for hits and misses, Student's t for other means over items, and ± 1.96 standard errors
    where the harness has no mean over items (perplexity, F1, groups).
    """

    estimate: Estimate
    values: tuple[Value, ...] | None  # of the documents in order; `None` where the metric is no mean over items
    reported: float  # the harness's own value
    reported_error: float | None  # the harness's own standard error, if it gives one


def read_metrics(results: Mapping[str, Any]) -> dict[str, HarnessMetric]:
    """Every metric of what `lm_eval.evaluate` returns with `log_samples=True`, as `task.metric` or `.metric.filter`."""
    found = {}
    for task, entries in results["results"].items():
        for key, own in entries.items():
            metric, comma, answer_filter = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(own, Real):
                continue
            value, error = float(own), _number(entries.get(f"{metric}_stderr,{answer_filter}"))
            values = _item_values(results.get("samples", {}).get(task, ()), metric, answer_filter, value)
            n = int(entries.get("sample_len", 0))
            interval = reported_mean(value, error, n) if values is None else estimate(values)
            name = f"{task}.{metric}" + ("" if answer_filter == "none" else f".{answer_filter}")
            found[name] = HarnessMetric(interval, values, value, error)
    return found


def _item_values(
    samples: Sequence[Mapping[str, Any]], metric: str, answer_filter: str, reported: float
) -> tuple[Value, ...] | None:
    """What each document came to, if the reported value is the mean of that."""
    own = [sample for sample in samples if sample["filter"] == answer_filter]
    raw = [_number(sample.get(metric)) for sample in sorted(own, key=lambda sample: int(sample["doc_id"]))]
    scored = [value for value in raw if value is not None]
    if not scored or not math.isclose(sum(scored) / len(scored), reported, rel_tol=1e-6, abs_tol=1e-9):
        return None
    verdicts = set(scored) <= {0.0, 1.0}
    return tuple(bool(value) if verdicts and value is not None else value for value in raw)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, Real | np.bool_) and math.isfinite(value) else None


_SEED = 1234  # the harness's own, of few-shot examples and of tasks that sample
_BOOTSTRAP = 1000
_BATCH = 8  # rows


def harness_results(
    model: LanguageModel,
    tasks: Sequence[str],
    interventions: Sequence[Intervention] = (None,),
    *,
    limit: int | None = None,
) -> list[dict[str, HarnessMetric]]:
    """Every metric of every task under every intervention: `results[intervention][name]`, on the same items.

    Prompts are what a task makes of them, with its own number of examples, and without a chat template. Tasks are names
    that the harness knows (tasks, groups, tags), or YAML task files, which may name Python functions that are then run.
    At most `limit` documents of every task are used.

    Raises:
        DataError: an unknown task, one whose data cannot be had, or one that runs code of the model or shows images.
        InvalidValueError: a setting is outside its range, or `lm_eval` is not installed.
        ModelError: the model has no tokenizer.
    """
    if isinstance(tasks, str) or not tasks:
        raise InvalidValueError(f"tasks must be a list of at least one name, got {tasks!r}.")
    if limit is not None and limit < 1:
        raise InvalidValueError(f"limit must be >= 1, got {limit}.")
    if model.tokenizer is None:
        raise ModelError(f"{model.name!r} was loaded without a tokenizer; the harness needs one.")
    harness = _harness()
    loaded = _load_tasks(harness.tasks, list(tasks))
    language_model = _wrapped(harness.models.huggingface, model)
    found = []
    with step("Harness", len(interventions)) as advance:
        for intervention in interventions:
            with intervened(model, [intervention]), generating(model), _checked(model):
                settings = {"limit": limit, "bootstrap_iters": _BOOTSTRAP, "log_samples": True}
                results = harness.evaluator.evaluate(lm=language_model, task_dict=loaded, **settings)
            found.append(read_metrics(results))
            advance(1)
    return found


def _harness() -> Any:
    try:
        import lm_eval.evaluator
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise InvalidValueError(
            "the lm-evaluation-harness (the package lm_eval) is not installed, or lacks a part: "
            f"{error}. Run: pip install steer2edit[lm-eval]"
        ) from error
    return lm_eval


def _load_tasks(harness: Any, names: list[str]) -> dict[str, Any]:
    """The harness's task objects, prepared; raises as `harness_results`."""
    by_name = [name for name in names if not (name.endswith(".yaml") and Path(name).is_file())]
    manager = harness.TaskManager(include_defaults=bool(by_name))  # reading its own 14,000 files takes long
    for name in by_name:
        require_known(name, manager.all_tasks)
    try:
        loaded: dict[str, Any] = manager.load(names)
    except Exception as error:  # a task is a program of its author's, and its data come from anywhere
        raise DataError(
            f"the harness cannot load {', '.join(names)}: {type(error).__name__}: {error} Its data must be local "
            "files, in the Hub's cache, or reachable on the Hub; a task file's paths count from the directory you "
            "run in."
        ) from error
    for name, task in loaded["tasks"].items():
        _prepare(name, task)
    return loaded


def _wrapped(harness: Any, model: LanguageModel) -> Any:
    """The loaded network as the harness's model."""
    logger = logging.getLogger("lm_eval.models.huggingface")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of launchers that are not used here
    try:
        # a copy of the tokenizer: the harness gives one without a padding token one
        return harness.HFLM(pretrained=model.network, tokenizer=copy.deepcopy(model.tokenizer), batch_size=_BATCH)
    finally:
        logger.setLevel(level)


def require_known(name: str, known: Sequence[str]) -> None:
    """Refuse a task that is not among the known tasks, groups and tags, and suggest the nearest, by a DataError."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        suggestion = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise DataError(
            f"the harness has no task {name!r}.{suggestion} `lm-eval ls tasks` lists the {len(known)} it knows; "
            "a task file of your own is given by its path."
        )


def _prepare(name: str, task: Any) -> None:
    """Refuse a task that is none of ours; else what the harness's own command does first: examples, and their seed."""
    if getattr(task, "UNSAFE_CODE", False):
        raise DataError(
            f"the harness task {name!r} runs code that the model writes; steer2edit runs no such task. Run it in a "
            "sandbox, with the harness's own command and the saved adapter: lm-eval run --model hf --model_args "
            "pretrained=MODEL,peft=ADAPTER."
        )
    if getattr(task, "MULTIMODAL", False):
        raise DataError(f"the harness task {name!r} shows images or sound; give a task of text alone.")
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_SEED)


@contextmanager
def _checked(model: LanguageModel) -> Iterator[None]:
    """A token that the embedding has no row for is named: the harness encodes texts by itself.

    Tasks that sample get the same random numbers under every intervention; the caller's are left alone.
    """

    def check(_: object, given: tuple[torch.Tensor, ...]) -> None:
        require_rows(model, given[0].flatten().tolist(), "a task")

    handle = model.network.get_input_embeddings().register_forward_pre_hook(check)
    try:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(_SEED)
            yield
    finally:
        handle.remove()
