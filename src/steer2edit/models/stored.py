"""Where a model's projections are in the files of its checkpoint, and the model's structure without its weights."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    ConversionOps,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from steer2edit.core import Component, Site
from steer2edit.errors import ModelError
from steer2edit.models.language_model import LanguageModel
from steer2edit.models.layout import Layout
from steer2edit.models.loading import model_class
from steer2edit.models.model_path import has_weights, model_path
from steer2edit.models.site_module import Projection, SiteModule

_NOT_NEEDED = ["*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "original/*", "*.ot"]
_SEARCHES: tuple[dict[str, Any], ...] = (
    {"local_files_only": True}, {"ignore_patterns": ["*.bin", *_NOT_NEEDED]}, {"ignore_patterns": _NOT_NEEDED},
)  # fmt: skip
"""Where a Hub model's files are looked for, until its weights are there: `.bin` only where there is nothing better."""


@dataclass(frozen=True)
class StoredMatrix:
    """Where one projection's weight is in the files of a checkpoint.

    Args:
        tensor: name of the tensor in the files.
        expert: index on the tensor's first axis, where the file has the experts fused.
        transposed: whether it is stored as [m, d].
        module: the site that the projection is of.
        projection: the projection.
    """

    tensor: str
    expert: int | None
    transposed: bool
    module: SiteModule
    projection: Projection

    @property
    def site(self) -> Site:
        """Which site it is of."""
        return self.module.site

    def component(self, index: int) -> Component:
        """The head or neuron with this index within the matrix."""
        return self.module.component(self.projection.columns.start // self.module.component_width + index)


def checkpoint_directory(name: str, *, weights_alone: bool = False) -> Path:
    """The local directory of a model: itself, the converted `smollm2`, or the snapshot of a Hub id.

    Args:
        name: a Hub id, a local directory, or `smollm2`.
        weights_alone: whether an adapter's folder, or weights without config.json, will do.

    Raises:
        ModelError: there is none, and it cannot be downloaded; or it is something else.
    """
    found = model_path(name, weights_alone=weights_alone)
    if Path(found).is_dir():
        return Path(found)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    directory = Path()
    try:
        for options in _SEARCHES:
            with suppress(LocalEntryNotFoundError) if "local_files_only" in options else nullcontext():
                directory = Path(snapshot_download(found, **options))
                if has_weights(directory) or (weights_alone and not (directory / "config.json").exists()):
                    break
    except Exception as error:  # the Hub's client raises errors of many kinds
        raise ModelError(
            f"cannot find the model {name!r} on this machine or on the Hub: {' '.join(str(error).split())[:300]} "
            "Give a directory with config.json and safetensors weights, a Hub id that can be reached, or smollm2."
        ) from error
    return Path(model_path(str(directory), weights_alone=weights_alone))


def load_skeleton(name: str, *, layout: Path | Layout | None = None, trust_remote_code: bool = False) -> LanguageModel:
    """The model's structure from its config alone, on the meta device: names, shapes and sites, but no weights.

    Args:
        name: a Hub id, a local directory, or `smollm2`.
        layout: a layout, or a file of one, for an architecture that is not known.
        trust_remote_code: run the Python code that a checkpoint brings.

    Raises:
        ModelError: the config is not there or cannot be read.
        LayoutError: the model has residual writers that no layout rule covers.
    """
    own_layout = Layout.given(layout)
    directory = checkpoint_directory(name)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            network = model_class(config, trust_remote_code).from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # configs raise what they like
        raise ModelError(
            f"cannot read the structure of {name!r}: {' '.join(str(error).split())[:400]} Check its config.json."
        ) from error
    network.name_or_path = str(directory)
    return LanguageModel(network, name=name, layout=own_layout)


def read_settings(directory: Path) -> dict[str, Any]:
    """The settings of config.json as the architecture understands them: with its defaults, older names renewed.

    Raises:
        ModelError: the config is not there, cannot be read, or is of an unknown architecture.
    """
    try:
        return dict(AutoConfig.from_pretrained(directory, trust_remote_code=False).to_dict())
    except Exception as error:  # configs raise what they like
        raise ModelError(f"cannot read {directory / 'config.json'}: {' '.join(str(error).split())[:400]}") from error


def stored_parameters(model: LanguageModel, tensors: Iterable[str]) -> dict[str, str]:
    """By parameter or buffer, the tensor of the files that is loaded into it as it is, renamed at most."""
    transforms = get_model_conversion_mapping(model.network)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    state = model.network.state_dict()
    found: dict[str, str] = {}
    for name in tensors:
        target, pattern = rename_source_key(name, renamings, converters, model.network.base_model_prefix, state)
        if target in state and pattern is None:
            found[target] = name
    return found


def stored_matrices(model: LanguageModel, tensors: Mapping[str, Sequence[int] | None]) -> dict[str, StoredMatrix]:
    """Which tensor of a checkpoint's files holds each projection of a model.

    Files may name tensors otherwise than the model does, and hold experts one by one that the model has fused;
    transformers' own rules for loading say which is which.

    Args:
        model: the structure; its weights are not read.
        tensors: shapes of all tensors in the files by name, `None` where a shape is not the weight's (packed ones).

    Returns:
        By `Projection.key`.

    Raises:
        ModelError: a projection is in no tensor, or loading computes it in a way that cannot be edited in the file.
    """
    transforms = get_model_conversion_mapping(model.network)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    state = model.network.state_dict()
    wanted: dict[str, list[tuple[SiteModule, Projection]]] = {}
    for module in model.sites.values():
        for projection in module.projections:
            wanted.setdefault(projection.parameter_name, []).append((module, projection))
    found: dict[str, StoredMatrix] = {}
    for name, shape in tensors.items():
        target, pattern = rename_source_key(name, renamings, converters, model.network.base_model_prefix, state)
        if target not in wanted:
            continue
        converter = next((c for c in converters if pattern is not None and pattern in c.source_patterns), None)
        operations = () if converter is None else converter.operations
        located = _located(name, wanted[target], _applied(operations, shape, state[target].shape))
        if twice := located.keys() & found.keys():
            key = min(twice)
            raise ModelError(
                f"the files of {model.name!r} hold {key} twice, as {found[key].tensor!r} and as {name!r}: which of "
                "them counts is not defined. Remove one."
            )
        found |= located
    missing = [key for projections in wanted.values() for _, p in projections if (key := p.key) not in found]
    if missing:
        raise ModelError(
            f"the files of {model.name!r} have no tensor for {len(missing)} of its projections ({missing[0]}, ...). "
            "Check that config.json and the weights belong together."
        )
    return found


def _applied(
    operations: Sequence[ConversionOps], shape: Sequence[int] | None, wanted: torch.Size
) -> list[ConversionOps]:
    """The operations that loading applies: some families transpose only tensors that do not have the right shape."""
    fits = shape is not None and tuple(shape) == tuple(wanted)
    return [o for o in operations if not (isinstance(o, Transpose) and o.check_dims and fits)]


def _located(
    name: str, projections: list[tuple[SiteModule, Projection]], operations: list[ConversionOps]
) -> dict[str, StoredMatrix]:
    others = [o for o in operations if not isinstance(o, MergeModulelist | Transpose)]
    if others:
        raise ModelError(
            f"{name}: loading this tensor applies {type(others[0]).__name__}, so the edit cannot be written into the "
            "file. Use the edit as an adapter instead (steer2edit export)."
        )
    flipped = any(isinstance(o, Transpose) for o in operations)
    merged = any(isinstance(o, MergeModulelist) for o in operations)
    number = int(re.findall(r"\.(\d+)\.", name)[-1]) if merged else None  # ...experts.17.down_proj.weight
    return {
        p.key: StoredMatrix(name, None if merged else p.expert, p.transposed != flipped, module, p)
        for module, p in projections
        if not merged or p.expert == number
    }
