"""Any task of the lm-evaluation-harness, on the base and under interventions, in the process that holds the model.

The harness's own transformers wrapper runs our loaded network, and the intervention is applied to that network by
hooks: there is no second copy of the weights, nothing to save first, and the base is measured by the same code.
"""

import copy
import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from steer2edit.core import Intervention
from steer2edit.editing import intervened
from steer2edit.errors import DataError, InvalidValueError, ModelError
from steer2edit.evaluation.harness_metrics import HarnessMetric, read_metrics
from steer2edit.models import LanguageModel
from steer2edit.models.chat import require_rows
from steer2edit.models.generation import generating
from steer2edit.progress import step

_SEED = 1234  # the harness's own, of few-shot examples and of tasks that sample
_BOOTSTRAP = 1000


def harness_results(
    model: LanguageModel,
    tasks: Sequence[str],
    interventions: Sequence[Intervention] = (None,),
    *,
    limit: int | None = None,
    include_path: Path | None = None,
    batch_size: int = 8,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
) -> list[dict[str, HarnessMetric]]:
    """Every metric of every task under every intervention: `results[intervention][name]`, on the same items.

    Args:
        model: with its tokenizer; its weights are not touched.
        tasks: names the harness knows (tasks, groups, tags), or YAML task files.
        interventions: `None` is the base.
        limit: use at most this many documents of every task.
        include_path: directory with task files of one's own. A task file may name Python functions that the harness
            then runs: only use files that you trust.
        batch_size: rows of a batch.
        num_fewshot: examples in the prompt, instead of the task's own number.
        apply_chat_template: put prompts into the model's chat format; off by default, as in the harness.

    Raises:
        DataError: an unknown task, one whose data cannot be had, or one that runs code of the model or shows images.
        InvalidValueError: a setting is outside its range, or `lm_eval` is not installed.
        MismatchError: an edit or vectors are for another model or another shape.
        ModelError: the model has no tokenizer.
    """
    _require_settings(model, tasks, limit, batch_size, apply_chat_template)
    harness = _import_harness()
    loaded = _load_tasks(harness, list(tasks), include_path)
    _require_runnable(loaded["tasks"])
    _prepare_tasks(loaded["tasks"].values(), num_fewshot)
    language_model = _wrapped(harness, model, batch_size)
    found = []
    with step("Harness", len(interventions)) as advance:
        for intervention in interventions:
            with _applied(model, intervention), _seeded(model):
                results = harness.evaluator.evaluate(
                    lm=language_model,
                    task_dict=loaded,
                    limit=limit,
                    bootstrap_iters=_BOOTSTRAP,
                    log_samples=True,
                    apply_chat_template=apply_chat_template,
                    system_instruction=model.chat.system if apply_chat_template else None,
                    fewshot_as_multiturn=True,  # what the harness's own command does
                )
            found.append(read_metrics(results))
            advance(1)
    return found


def _require_settings(
    model: LanguageModel, tasks: Sequence[str], limit: int | None, batch_size: int, apply_chat_template: bool
) -> None:
    if isinstance(tasks, str) or not tasks:
        raise InvalidValueError(f"tasks must be a list of at least one name, got {tasks!r}.")
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise InvalidValueError(f"{name} must be >= 1, got {value}.")
    if model.tokenizer is None:
        raise ModelError(f"{model.name!r} was loaded without a tokenizer; the harness needs one.")
    if apply_chat_template and not getattr(model.tokenizer, "chat_template", None):
        raise ModelError(
            f"the tokenizer of {model.name!r} has no chat template. Pass one, or leave apply_chat_template off."
        )


def _import_harness() -> Any:
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


def _load_tasks(harness: Any, names: list[str], include_path: Path | None) -> dict[str, Any]:
    """The harness's task objects.

    Raises:
        DataError: as said in `harness_results`.
    """
    if include_path is not None and not include_path.is_dir():
        raise DataError(f"there is no directory {include_path}: include_path must hold task files (*.yaml).")
    manager = harness.tasks.TaskManager(include_path=_text(include_path), include_defaults=False)
    if not set(_by_name(names)) <= set(manager.all_subtasks):  # reading the harness's own 14,000 task files takes long
        own = list(manager.all_tasks)
        manager = harness.tasks.TaskManager(include_path=_text(include_path))
        for name in _by_name(names):
            require_known(name, manager.all_tasks, own, include_path)
    try:
        loaded: dict[str, Any] = manager.load(names)
    except Exception as error:  # a task is a program of its author's, and its data come from anywhere
        raise DataError(
            f"the harness cannot load {', '.join(names)}: {type(error).__name__}: {error} Its data must be local "
            "files, in the Hub's cache, or reachable on the Hub; a task file's paths count from the directory you "
            "run in."
        ) from error
    return loaded


def _wrapped(harness: Any, model: LanguageModel, batch_size: int) -> Any:
    """The loaded network as the harness's model."""
    logger = logging.getLogger("lm_eval.models.huggingface")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of launchers that are not used here
    try:
        # a copy of the tokenizer: the harness gives one without a padding token one
        wrapped = harness.models.huggingface.HFLM(
            pretrained=model.network, tokenizer=copy.deepcopy(model.tokenizer), batch_size=batch_size
        )
        wrapped.chat_template_args = dict(model.chat.arguments)
        return wrapped
    finally:
        logger.setLevel(level)


def _by_name(names: Iterable[str]) -> list[str]:
    """The tasks that are asked for by name; the others are files."""
    return [name for name in names if not (name.endswith(".yaml") and Path(name).is_file())]


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def require_known(name: str, known: Sequence[str], own: Sequence[str], include_path: Path | None) -> None:
    """Refuse a task that is not known, and suggest the nearest.

    Args:
        name: asked for.
        known: all tasks, groups and tags.
        own: those of `include_path`.
        include_path: directory with task files of one's own, if any.

    Raises:
        DataError: as said.
    """
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    suggestion = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    local = f" {include_path} has: {', '.join(sorted(own)) or 'no task file that can be read'}." if include_path else ""
    raise DataError(
        f"the harness has no task {name!r}.{suggestion}{local} `lm-eval ls tasks` lists the {len(known)} it knows; "
        "a task file of your own is given by its path, or its directory by include_path."
    )


def _require_runnable(tasks: Mapping[str, Any]) -> None:
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise DataError(
                f"the harness task {name!r} runs code that the model writes; steer2edit runs no such task. Run it in a "
                "sandbox, with the harness's own command and the saved adapter: lm-eval run --model hf --model_args "
                "pretrained=MODEL,peft=ADAPTER."
            )
        if getattr(task, "MULTIMODAL", False):
            raise DataError(f"the harness task {name!r} shows images or sound; give a task of text alone.")


def _prepare_tasks(tasks: Iterable[Any], num_fewshot: int | None) -> None:
    """What the harness's own command does before it evaluates: examples in the prompt, and their seed."""
    for task in tasks:
        own = task.get_config("num_fewshot")
        if own is None or (num_fewshot is not None and own != 0):  # a task that says 0 means it
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=_SEED)


@contextmanager
def _applied(model: LanguageModel, intervention: Intervention) -> Iterator[None]:
    with intervened(model, [intervention]), generating(model), model.chat.clock(), _rows_checked(model):
        yield


@contextmanager
def _rows_checked(model: LanguageModel) -> Iterator[None]:
    """A token that the embedding has no row for is named: the harness encodes texts by itself."""

    def check(_: object, given: tuple[torch.Tensor, ...]) -> None:
        require_rows(model, given[0].flatten().tolist(), "a task")

    handle = model.network.get_input_embeddings().register_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _seeded(model: LanguageModel) -> Iterator[None]:
    """The same random numbers under every intervention, for tasks that sample; the caller's are left alone."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_SEED)
        yield
