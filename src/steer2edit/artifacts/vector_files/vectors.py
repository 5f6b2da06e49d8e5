"""Steering vectors in one safetensors file, and the files of others that are read in its place. See docs/formats.md."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer2edit.artifacts.atomic import atomic_file
from steer2edit.artifacts.facts import VectorsHeader
from steer2edit.artifacts.manifest import SCHEMA_VERSION, parse_object, plain_json, require_version
from steer2edit.artifacts.official import is_official_edit, official_tensors
from steer2edit.artifacts.tensors import read_pt, read_tensors, require_file, write_tensors
from steer2edit.artifacts.vector_files.block_files import read_control_vectors, read_svec
from steer2edit.artifacts.vector_files.foreign import is_steered, read_neuronpedia, steered_vectors
from steer2edit.core import BLOCKS, ClassMeans, Site, SiteEffects, SiteMeans, SteeringVectors, UseAt
from steer2edit.errors import ArtifactError, InvalidValueError

VectorSource = SteeringVectors | Path | str | Mapping[Site, Tensor] | Mapping[str, Tensor]

_KIND = "steering-vectors"
_PLAIN = "v"  # a key that is a site's or a layer's name alone is v itself
_OUTPUT = (_PLAIN, "output_positive", "output_negative")
_INPUT = ("input_mean", "input_positive", "input_negative")
_TOKENS = ("tokens_positive", "tokens_negative")
_EFFECTS = ("direction", "effect", "drift", "gated", "agreement")
_LAYER = "0|[1-9][0-9]{0,8}"
_SITE_PARTS = "|".join((*_OUTPUT[1:], *_INPUT, *_TOKENS, *_EFFECTS))
_NAME = re.compile(
    rf"(?P<site>L(?:{_LAYER})\.(?:{'|'.join(BLOCKS)}))(?:\.(?P<part>{_SITE_PARTS}))?"
    rf"|B(?P<layer>{_LAYER})(?:\.(?P<mean>{'|'.join(_OUTPUT[1:])}))?"
)


def save_vectors(vectors: SteeringVectors, path: Path | str, *, overwrite: bool = False, plain: bool = False) -> None:
    """Write vectors to one safetensors file, in float32, complete or not at all, and check it by reading it again.

    `plain` is for other programs: only v and μ, as `L3.attn` and `L3.attn.input_mean`, without metadata.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ArtifactError(f"vectors are written as safetensors, got {path.name!r}: name it {path.stem}.safetensors.")
    if plain:
        header = {"format": "pt"}
        tensors = {str(site): means.steering_vector for site, means in vectors.sites.items()}
        tensors |= {f"{s}.input_mean": m.input.midpoint for s, m in vectors.sites.items() if m.input is not None}
        tensors |= {f"B{layer}": means.difference for layer, means in (vectors.block_outputs or {}).items()}
    else:
        tensors = _named_tensors(vectors)
        header = {"schema_version": str(SCHEMA_VERSION), "kind": _KIND}
        facts = {"metadata": vectors.metadata, "diagnosis": vectors.diagnosis}
        facts = {name: plain_json(value, f"vectors' {name}") for name, value in facts.items()}
        VectorsHeader.read(facts, f"{path}: what it says is damaged", "Extract again.")
        for name, value in facts.items():
            text = json.dumps(value, ensure_ascii=False)
            header[name] = text.encode(errors="backslashreplace").decode()  # half of a surrogate pair, of a file's name
    with atomic_file(path, overwrite=overwrite) as scratch:
        write_tensors({name: tensor.float() for name, tensor in tensors.items()}, scratch, header)


def _named_tensors(vectors: SteeringVectors) -> dict[str, Tensor]:
    pairs = {f"{site}.{name}": pair for site, means in vectors.sites.items() for name, pair in means.named.items()}
    pairs |= {f"B{layer}.output": means for layer, means in (vectors.block_outputs or {}).items()}
    tensors = {f"{k}_{side}": getattr(pair, side) for k, pair in pairs.items() for side in ("positive", "negative")}
    for site, means in vectors.sites.items():
        if means.effects is not None:
            values = (*means.effects.tensors, torch.tensor([means.effects.agreement]))
            tensors |= zip((f"{site}.{name}" for name in _EFFECTS), values, strict=True)
    return tensors


def read_vectors(path: Path | str) -> SteeringVectors:
    """Read a file of vectors as what it is: vectors by site, or by block where that is what the file holds.

    That is a `.safetensors` file that `save_vectors` wrote, or one made elsewhere, with v [d] as `L3.attn` and
    optionally the input mean [m] as `L3.attn.input_mean`; a `.pt` file with the official Steer2Edit directions, with v
    by site, or for lm-eval's model `steered`; a GGUF control vector; a `.svec` file; or an export of Neuronpedia. An
    ArtifactError where it is unsound.
    """
    path = Path(path)
    require_file(path, "steering vectors")
    readers = {
        ".safetensors": _load_safetensors, ".pt": _load_pt, ".gguf": read_control_vectors, ".svec": read_svec,
        ".json": read_neuronpedia,
    }  # fmt: skip
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ArtifactError(f"{path}: steering vectors are read from {' or '.join(readers)} files, not {suffix!r}.")
    try:
        return readers[suffix](path)
    except InvalidValueError as error:
        raise ArtifactError(f"{path}: {error}") from error


def load_vectors(source: VectorSource, use_at: UseAt | None = None) -> SteeringVectors:
    """Vectors from wherever a user has them: themselves, a file (`read_vectors`), or a mapping site → v.

    A mapping has v [d] by the site or its name (`L3.mlp`), optionally with `L3.mlp.input_mean` → μ [m]. Directions of
    block outputs, and only they, need `use_at`: which projections of the same layer take them.
    """
    if isinstance(source, Path | str):
        found = read_vectors(source)
    elif isinstance(source, SteeringVectors):
        found = source
    elif isinstance(source, Mapping):
        found = _assembled({str(key): tensor for key, tensor in source.items()}, {"origin": "imported"})
    else:
        raise InvalidValueError(f"vectors are given by site (L3.mlp) or as a file, got {source!r:.80}.")
    if found.sites:
        if use_at is not None:
            where = source if isinstance(source, Path | str) else "the source"
            raise ArtifactError(f"{where} holds vectors of projections already: leave out --use-at (use_at).")
        return found
    if use_at is not None:
        return found.used_at(use_at)
    name = f"{source} holds" if isinstance(source, Path | str) else "these are"
    raise ArtifactError(
        f"{name} {found.metadata.get('format', 'vectors')}: one direction per block output, not one per projection. "
        "They are other quantities and are not converted silently. Say at which projections to use them, "
        "--use-at mlp|attn|both (use_at='mlp'), or extract vectors with steer2edit extract."
    )


def _load_safetensors(path: Path) -> SteeringVectors:
    tensors, header = read_tensors(path, "steering vectors")
    if "kind" not in header:
        return _assembled(tensors, {"origin": "imported", "format": "safetensors", "file": path.name})
    if header["kind"] != _KIND:
        raise ArtifactError(f"{path} holds {header['kind']!r}, but steering vectors are needed here.")
    version = header.get("schema_version", "")
    require_version(int(version) if version.isdecimal() else version, str(path))
    texts = {name: header.get(name, "") for name in ("metadata", "diagnosis")}
    facts = {k: None if text == "null" else parse_object(text.encode(), f"{path}, {k}") for k, text in texts.items()}
    VectorsHeader.read(facts, f"{path}: what it says is damaged", "Extract again.")
    return _assembled(tensors, facts["metadata"] or {}, facts["diagnosis"])


def _load_pt(path: Path) -> SteeringVectors:
    content, made = read_pt(path), {"origin": "imported", "file": path.name}
    if isinstance(content, dict) and {"pre", "post"} & content.keys():
        return _assembled(official_tensors(content), {**made, "format": "official Steer2Edit directions"})
    if is_steered(content):
        return steered_vectors(content, format="lm-eval steered", file=path.name)
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        return _assembled({str(key): value for key, value in content.items()}, {**made, "format": "torch"})
    found = f"keys {', '.join(map(repr, list(content)[:5]))}" if isinstance(content, dict) else type(content).__name__
    edit = " It is an edit of the official code: steer2edit import-edit reads it." if is_official_edit(content) else ""
    raise ArtifactError(
        f"{path} holds neither the official Steer2Edit directions ('pre' and 'post'), nor tensors by site (L3.attn), "
        f"nor hookpoints of lm-eval, but {found}.{edit}"
    )


def _assembled(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], diagnosis: Mapping[str, Any] | None = None
) -> SteeringVectors:
    """Vectors from tensors by name."""
    sites: dict[str, dict[str, Tensor]] = {}
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidValueError(
                f"{name!r} is not the name of a steering vector. Name v L<layer>.attn or L<layer>.mlp (L3.attn), and "
                "its input mean L3.attn.input_mean."
            )
        if not isinstance(tensor, Tensor):
            raise InvalidValueError(f"{name} must be a torch tensor, got {type(tensor).__name__}.")
        if tensor.ndim != 1 or not tensor.is_floating_point() or not tensor.numel():
            raise InvalidValueError(
                f"{name} must be a vector of floating-point numbers, got {str(tensor.dtype)[6:]} of shape "
                f"{list(tensor.shape)}."
            )
        own = sites.setdefault(match["site"], {}) if match["site"] else layers.setdefault(int(match["layer"]), {})
        own[match["part"] or match["mean"] or _PLAIN] = tensor.detach().to("cpu", torch.float32)
    by_site = {Site.parse(site): _site_means(site, parts) for site, parts in sites.items()}
    blocks = {layer: _class_means(f"B{layer}", parts, _OUTPUT) for layer, parts in layers.items()}
    return SteeringVectors(by_site, metadata, diagnosis, blocks or None)


def _site_means(site: str, parts: Mapping[str, Tensor]) -> SiteMeans:
    groups = (_OUTPUT, _INPUT, _TOKENS, _EFFECTS)
    outputs, inputs, tokens, effects = ({p: parts[p] for p in group if p in parts} for group in groups)
    measured = None
    if effects:
        if set(_EFFECTS) - effects.keys() or effects["agreement"].numel() != 1:
            raise InvalidValueError(f"{site}: of its effects it needs {', '.join(_EFFECTS)}, the last one number.")
        direction, effect, drift, gated, agreement = (effects[name] for name in _EFFECTS)
        measured = SiteEffects(direction, effect, drift, gated, agreement.item())
    return SiteMeans(
        _class_means(site, outputs, _OUTPUT),
        _class_means(site, inputs, _INPUT) if inputs else None,
        _class_means(site, tokens, _TOKENS) if tokens else None,
        measured,
    )


def _class_means(name: str, parts: Mapping[str, Tensor], group: tuple[str, ...]) -> ClassMeans:
    """From a pair, or from one tensor: v, which is a difference, or μ, which is the middle."""
    *single, first, second = group
    if list(parts) == single:
        tensor = parts[single[0]]
        return ClassMeans(tensor, torch.zeros_like(tensor) if single == [_PLAIN] else tensor)
    if parts.keys() != {first, second}:
        only = f"only {', '.join(parts)}" if parts else f"no {group[0]}"
        raise InvalidValueError(f"{name} has {only}: it needs {', or '.join([*single, f'{first} and {second}'])}.")
    positive, negative = parts[first], parts[second]
    if positive.shape != negative.shape:
        raise InvalidValueError(
            f"{name}: the positive mean has {positive.numel()} entries and the negative {negative.numel()}: they "
            "cannot belong together."
        )
    return ClassMeans(positive, negative)
