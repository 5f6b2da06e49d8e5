"""Loading a model, its structure alone, or its settings: of a Hub id, a directory, a GGUF file, or `smollm2`."""

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from steer2edit.errors import ModelError, Steer2EditError, did_you_mean
from steer2edit.models.batching import out_of_memory
from steer2edit.models.chat_format import ChatFormat, load_tokenizer, with_template
from steer2edit.models.gguf import cache_directory, gguf_sha256, require_complete
from steer2edit.models.language_model import LanguageModel
from steer2edit.models.layout import Layout
from steer2edit.models.model_path import GIVE_A_MODEL, checkpoint_directory, gguf_file, model_path, not_readable
from steer2edit.models.offload import disk_map
from steer2edit.models.sites import find_sites
from steer2edit.progress import step

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    layout: Path | Layout | None = None,
    chat_template: str | None = None,
    template_args: Mapping[str, Any] | None = None,
    system: str | None = None,
    like: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a causal language model with its tokenizer: a Hub id, a directory, a GGUF file, or `smollm2`.

    `settings.Loading` says what the options mean. Template arguments, system message and date that are not given are
    those of the first record in `like`, the metadata of what is gone on from.

    Raises:
        InvalidValueError: a template argument that the chat template does not read.
        ModelError: unknown dtype or device, or the model is not there or cannot be read.
        LayoutError: the model has residual writers that no layout rule covers.
    """
    target, own_layout = device_map(device), Layout.given(layout)
    try:
        with _our_progress_only(name):
            network, tokenizer = _read(name, dtype, target, chat_template, trust_remote_code, own_layout)
    except Steer2EditError:
        raise
    except Exception as error:  # the readers of configs, tokenizers and weights raise what they like
        if out_of_memory(error):
            raise ModelError(
                f"memory does not suffice for the weights of {name!r}. Use a smaller dtype (--dtype bfloat16), or "
                "leave its layers on the disk (--device disk) to extract and convert."
            ) from error
        raise not_readable(f"load the model {name!r}", error, GIVE_A_MODEL) from error
    chat = ChatFormat.going_on(template_args or {}, like, None if chat_template == "none" else chat_template, system)
    return _checked(network, tokenizer, name, chat, layout=own_layout, gguf_sha256=_gguf_sha256(name))


def wrap_model(
    network: Any, tokenizer: Any, *, name: str | None = None, layout: Path | Layout | None = None,
    template_args: Mapping[str, Any] | None = None, system: str | None = None,
) -> LanguageModel:  # fmt: skip
    """A model that is in memory already with its tokenizer; a ModelError where one of the two is something else."""
    causal = isinstance(network, PreTrainedModel) and network.can_generate()
    if not causal or getattr(network.config, "is_encoder_decoder", False):
        raise ModelError(
            "wrap needs a causal language model of transformers (AutoModelForCausalLM), without an adapter or a "
            f"pipeline around it, got an object of {type(network).__module__}.{type(network).__qualname__}."
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(
            f"wrap needs the model's tokenizer (AutoTokenizer) besides, got {type(tokenizer).__qualname__}: "
            "wrap(model, tokenizer)."
        )
    tokenizer = with_template(tokenizer, tokenizer.name_or_path or network.name_or_path)
    chat, layout = ChatFormat(template_args or {}, system=system), Layout.given(layout)
    return _checked(network, tokenizer, name or network.name_or_path or "unnamed", chat, layout=layout)


def _checked(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, chat: ChatFormat, **others: Any
) -> LanguageModel:
    """A model whose template reads the arguments, and with no quantised format that cannot be read here."""
    chat.require_used(tokenizer)
    revision = getattr(network.config, "_commit_hash", None)
    model = LanguageModel(network, tokenizer, name=name, chat=chat, revision=revision, **others)
    kinds = {type(p.module): p for site in model.sites.values() for p in site.projections if p.quantised}
    for projection in kinds.values():
        _ = projection.weight
    return model


def load_skeleton(name: str, *, layout: Path | Layout | None = None, trust_remote_code: bool = False) -> LanguageModel:
    """The model's structure from its config alone, on the meta device: names, shapes and sites, but no weights."""
    own_layout, directory = Layout.given(layout), checkpoint_directory(name)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
        network = _structure(config, trust_remote_code)
    except Exception as error:  # configs raise what they like
        raise not_readable(f"read the structure of {name!r}", error, "Check its config.json.") from error
    network.name_or_path = str(directory)
    return LanguageModel(network, name=name, layout=own_layout, gguf_sha256=_gguf_sha256(name))


def read_settings(directory: Path) -> dict[str, Any]:
    """The settings of config.json as the architecture understands them: with its defaults, older names renewed."""
    try:
        return dict(AutoConfig.from_pretrained(directory, trust_remote_code=False).to_dict())
    except Exception as error:  # configs raise what they like
        raise not_readable(f"read {directory / 'config.json'}", error, "") from error


def _gguf_sha256(name: str) -> str | None:
    file = gguf_file(name)
    return None if file is None else gguf_sha256(file)


def _read(
    name: str, dtype: str, device: str, chat_template: str | None, trust_remote_code: bool, layout: Layout | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    path = model_path(name)
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    place: dict[str, Any] = {"device_map": device if device in ("auto", "balanced") else {"": device}}
    if device == "disk":
        structure = _structure(config, trust_remote_code)
        place["device_map"] = disk_map(structure, find_sites(structure, layout).path)
        try:  # weights are put there that are not on the disk as the model has them, such as experts that it has fused
            cache_directory().mkdir(parents=True, exist_ok=True)
            place["offload_folder"] = tempfile.mkdtemp(prefix="offload-", dir=cache_directory())
        except OSError as error:
            raise _no_room(str(cache_directory()), error) from error
    try:
        network, loaded = model_class(config, trust_remote_code).from_pretrained(
            path,
            dtype=_dtype(dtype, device, config),
            **place,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:  # quantisers raise what they like
        if device == "disk":
            shutil.rmtree(place["offload_folder"], ignore_errors=True)
            if isinstance(error, OSError | SafetensorError):
                raise _no_room(place["offload_folder"], error) from error
        if isinstance(error, OSError) or getattr(config, "quantization_config", None) is None:
            raise
        raise ModelError(
            f"the weights of {name!r} are quantised, and cannot be loaded on this machine: "
            f"{' '.join(str(error).split())[:300].rstrip('.')}. Install what it asks for, or use the "
            "unquantised checkpoint."
        ) from error
    if getattr(network, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"{name!r} holds both a model's weights and an adapter (adapter_config.json), and transformers loads the "
            "one on top of the other. Download it, and move the adapter's files to a folder of their own."
        )
    require_complete(name, loaded["missing_keys"])
    if device == "disk":
        weakref.finalize(network, shutil.rmtree, place["offload_folder"], True)
    return network, load_tokenizer(path, chat_template, trust_remote_code)


def _structure(config: PreTrainedConfig, trust_remote_code: bool) -> Any:
    """The network on the meta device, without weights."""
    with torch.device("meta"):
        return model_class(config, trust_remote_code).from_config(config, trust_remote_code=trust_remote_code)


def _no_room(folder: str, error: Exception) -> ModelError:
    return ModelError(
        f"cannot load the model with its layers on the disk, by way of {folder!r}: "
        f"{' '.join(str(error).split())[:300]}. Set STEER2EDIT_CACHE to a directory that can be written and has room "
        "for the model."
    )


def model_class(config: PreTrainedConfig, trust_remote_code: bool = False) -> Any:
    """The class that loads a model with its language head: a causal one, or a multimodal one with a language model."""
    if trust_remote_code and "AutoModelForCausalLM" in getattr(config, "auto_map", {}):
        return AutoModelForCausalLM
    classes = (AutoModelForCausalLM, AutoModelForImageTextToText)
    known = [one for one in classes if type(config) in one._model_mapping]
    whole = (one for one in known if one._model_mapping[type(config)].config_class is type(config))
    return next(whole, known[0] if known else AutoModelForCausalLM)  # some causal ones are the text part alone


@contextmanager
def _our_progress_only(name: str) -> Iterator[None]:
    """One bar for the whole loading, instead of one for each of its parts."""
    theirs = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with step(f"Loading {name}", 1) as advance:
            yield
            advance(1)
    finally:
        if theirs:
            transformers_logging.enable_progress_bar()


def device_map(device: str) -> str:
    """The `device_map` of transformers for a device; `auto` is what this machine has."""
    if device == "auto":
        if torch.cuda.is_available():
            return "auto" if torch.cuda.device_count() > 1 else "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if device in ("balanced", "disk"):
        return device
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}. {did_you_mean(device, _DEVICES)}") from error
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(kind, False):
        raise ModelError(f"device {device!r} is not available on this machine. Use --device cpu or auto.")
    return device


_DEVICES = ("auto", "balanced", "cpu", "cuda", "disk", "mps")


def _dtype(dtype: str, device: str, config: object) -> torch.dtype:
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != "auto":
        raise ModelError(f"unknown dtype {dtype!r}. {did_you_mean(dtype, [*DTYPES, 'auto'])}")
    own: torch.dtype = getattr(config, "dtype", None) or torch.float32
    if device in ("cpu", "disk") and own in (torch.bfloat16, torch.float16):
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
    return own
