"""What `adapter_config.json` says of a PEFT LoRA adapter, as far as it decides which numbers the adapter amounts to.

A field of PEFT's `LoraConfig` is one of `AdapterConfig`, or is in `WITHOUT_EFFECT`; what is in neither, and not empty,
may change the meaning of the factors: it is refused by name.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, ValidationError

from steer2edit.artifacts.edits.lora import CONFIG_FILE
from steer2edit.artifacts.manifest import Record, read_json
from steer2edit.errors import ArtifactError

WITHOUT_EFFECT = frozenset({
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout",  # in training only
    "bias", "lora_bias",  # what they add is in the file, under names of its own
    "loftq_config", "eva_config", "corda_config", "lora_ga_config",  # init_lora_weights says whether they are used
    "megatron_core",  # the name of a package, used with megatron_config
    "qalora_group_size",  # used with use_qalora
    "runtime_config",  # PEFT ignores it in a file
})  # fmt: skip
"""Fields that change nothing of what the file's tensors mean."""

_KEEPS_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights with which PEFT leaves the base's own weights as they are."""
_WAY_OUT = "Merge it with PEFT (merge_and_unload) and audit the merged checkpoint."


def _are_patterns(patterns: Any) -> Any:
    for pattern in [patterns] if isinstance(patterns, str) else patterns or ():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
    return patterns


_N = TypeVar("_N", int, float)
_Rank = Annotated[int, Field(strict=True, gt=0)]
_Alpha = Annotated[float, Field(strict=True)]
_Rows = Annotated[list[Annotated[int, Field(strict=True, ge=0)]], Field(min_length=1)]
_NamesOrPattern = Annotated[list[str] | str | None, AfterValidator(_are_patterns)]


class AdapterConfig(Record):
    """The fields that are understood, with PEFT's defaults."""

    r: _Rank = 8
    lora_alpha: _Alpha = 8
    use_rslora: bool = False
    rank_pattern: Annotated[dict[str, _Rank] | None, AfterValidator(_are_patterns)] = None
    alpha_pattern: Annotated[dict[str, _Alpha] | None, AfterValidator(_are_patterns)] = None
    fan_in_fan_out: bool = False
    init_lora_weights: bool | str | None = True
    target_modules: _NamesOrPattern = None
    exclude_modules: _NamesOrPattern = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: _NamesOrPattern = None
    modules_to_save: Annotated[list[str] | None, AfterValidator(_are_patterns)] = None
    target_parameters: list[str] | None = None
    trainable_token_indices: _Rows | dict[str, _Rows] | None = None

    def rank(self, name: str) -> int:
        """r of a module or parameter."""
        return _of(self.rank_pattern, name, self.r)

    def scaling(self, name: str) -> float:
        """s of a module or parameter: α / r, or α / √r where it is rank-stabilised."""
        rank, alpha = self.rank(name), _of(self.alpha_pattern, name, self.lora_alpha)
        return alpha / (rank**0.5 if self.use_rslora else rank)

    def reaches(self, module: str) -> bool:
        """Whether PEFT gives this module factors; it ignores those in the file otherwise."""
        from peft.tuners.tuners_utils import check_target_module_exists

        if self.target_modules == "all-linear" or (self.target_modules is None and not self.target_parameters):
            return True  # PEFT's own choice for the architecture
        return bool(check_target_module_exists(self, module))

    def wrapped(self, parameters: Sequence[str]) -> list[str]:
        """Which of a module's parameters PEFT wraps as such, from the innermost wrapper to the outermost."""
        targets = self.target_parameters or []
        return [name for name in parameters if any(name == t or name.endswith(f".{t}") for t in targets)]

    def token_rows(self, module: str) -> list[int]:
        """The rows of an embedding that the adapter replaces."""
        chosen = self.trainable_token_indices or {}
        if isinstance(chosen, list):
            return chosen
        return next((rows for key, rows in chosen.items() if module == key or module.endswith(f".{key}")), [])


def _of(patterns: Mapping[str, _N] | None, name: str, otherwise: _N) -> _N:
    """The value of PEFT's first pattern that fits a name."""
    from peft.utils.other import get_pattern_key

    patterns = patterns or {}
    return patterns.get(get_pattern_key(list(patterns), name), otherwise)


def read_adapter_config(directory: Path) -> AdapterConfig:
    """Read the config of an adapter.

    Raises:
        ArtifactError: it is no LoRA, or has a setting with which it is not W + s B A, or that is not known.
    """
    path = directory / CONFIG_FILE
    raw = read_json(path)
    if raw.get("peft_type") != "LORA":
        raise ArtifactError(
            f"{path}: peft_type is {raw.get('peft_type')!r}, and only LORA is read. If PEFT can merge this adapter, "
            "merge it (merge_and_unload) and audit the merged checkpoint."
        )
    known = AdapterConfig.model_fields.keys() | WITHOUT_EFFECT | {"peft_type"}
    for field, value in raw.items():
        if field not in known and value not in (None, False, {}, [], ""):
            raise ArtifactError(
                f"{path}: with {field} = {str(value)[:80]} the adapter may be something else than W + s B A. {_WAY_OUT}"
            )
    try:
        config = AdapterConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"{path}: {where} is {str(first['input'])[:80]} ({first['msg']}), and PEFT cannot load that either. Get "
            "the adapter again, or set the value that it was trained with."
        ) from error
    if config.init_lora_weights not in _KEEPS_THE_BASE:
        raise ArtifactError(
            f"{path}: with init_lora_weights = {str(config.init_lora_weights)[:80]} PEFT changes the base's weights "
            f"before it adds B A to them. {_WAY_OUT}"
        )
    return config
