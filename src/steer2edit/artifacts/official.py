"""Files of the official Steer2Edit code: directions, and edits. They are read and never written: they are pickles.

docs/formats.md describes them. An edit does not say which model it is for: only shapes can be checked.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.artifacts.tensors import read_pt, require_file
from steer2edit.core import Block, Site, SiteEdit, WeightEdit
from steer2edit.errors import ArtifactError, InvalidValueError, MismatchError
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import LanguageModel

_MODULE = re.compile(r"model\.layers\[(\d+)\]\.(self_attn\.o_proj|mlp\.down_proj)")
_UNIT_TOLERANCE = 0.02  # the official code stores unit vectors in bfloat16
_Factors = dict[int, tuple[float, Tensor]]  # λ and k̂ by component; a neuron's k̂ is 1, its sign is in λ


def is_official_edit(content: object) -> bool:
    """Whether this is meant to be an edit of the official code."""
    return isinstance(content, dict) and {"attn", "mlp", "meta"} <= content.keys()


def official_tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a directions file by our names, v itself where it has only that; an InvalidValueError if unsound.

        {"pre" | "post": {"pos_mean" | "neg_mean" | "direction": {module: tensor}}}

    "post" is a projection's output y, "pre" its input x; direction = pos_mean − neg_mean.
    """
    means: dict[str, Tensor] = {}
    directions: dict[str, Tensor] = {}
    for where, side in (("post", "output"), ("pre", "input")):
        groups = _dictionary(content.get(where, {}), repr(where))
        for group, name in (("pos_mean", "positive"), ("neg_mean", "negative"), ("direction", "")):
            for key, tensor in _dictionary(groups.get(group) or {}, f"{where}.{group}").items():
                match = _MODULE.fullmatch(str(key))
                if match is None or not isinstance(tensor, Tensor):
                    raise InvalidValueError(
                        f"{where}.{group}: {key!r} is not a tensor named model.layers[<i>].self_attn.o_proj or "
                        "model.layers[<i>].mlp.down_proj."
                    )
                site = f"L{int(match[1])}.{'mlp' if match[2].startswith('mlp') else 'attn'}"
                if name:
                    means[f"{site}.{side}_{name}"] = tensor
                elif side == "output":
                    directions[site] = tensor
    if any(".output_" in name for name in means):
        return means
    if not directions:
        raise InvalidValueError("there is no 'post' with pos_mean and neg_mean, or direction: nothing to steer along.")
    return means | directions


def _dictionary(value: object, what: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise InvalidValueError(f"{what} must be a dictionary, got {type(value).__name__}.")
    return value


def load_official_edit(path: Path | str, model: LanguageModel) -> WeightEdit:
    """An edit of the official code as ours, with the same ΔW: `u = v̂`, `a = concat_i(λ_i k̂_i)`.

    A neuron's λ gets back the sign that the official code folds into it, `sign(W_iᵀ v̂)`, so that λ > 0 amplifies here
    as in our own edits. The official file has no g: for edited components it follows from λ,
    `g = sign(λ)(|λ| ρ(1 − α) + ρα)`; for the others, of which only |g| ≤ ρα is known, it is stored as 0. An
    ArtifactError where the file is unsound, a MismatchError where the model has other shapes.
    """
    path = Path(path)
    require_file(path, "edit of the official code")
    content = read_pt(path)
    if not is_official_edit(content):
        found = f"keys {list(content)[:5]}" if isinstance(content, dict) else type(content).__name__
        raise ArtifactError(f"{path} is no edit of the official code ('attn', 'mlp' and 'meta'), but holds {found}.")
    try:
        meta = _dictionary(content["meta"], "meta")
        known = {
            k: _number(v, f"meta.{k}")
            for k, v in meta.items()
            if k in ("rho_attn", "rho_mlp", "alpha") and v is not None
        }
        if "alpha" not in known:
            raise InvalidValueError("meta has no alpha: the file is damaged.")
        rho_attn, rho_mlp = (rho if (rho := known.get(f"rho_{block}", 0.0)) > 0 else None for block in ("attn", "mlp"))
        hyperparameters = Hyperparameters(rho_attn, rho_mlp, known["alpha"])
        sites: dict[Site, SiteEdit] = {}
        blocks: tuple[Block, ...] = ("attn", "mlp")
        for block in blocks:
            directions = _dictionary(meta.get(f"vhat_{block}", {}), f"meta.vhat_{block}")
            for site, factors in _by_site(content[block], block).items():
                u = _unit_vector(directions.get(site.layer), f"meta.vhat_{block}[{site.layer}]")
                sites[site] = _site_edit(model, site, u, factors, hyperparameters)
        metadata = {
            "origin": "imported", "format": "official Steer2Edit edit", "file": path.name, "method": "steer2edit",
            "hyperparameters": hyperparameters.to_json(), "model": model.describe(),
            "importance": "from λ; 0 where nothing is edited and g is unknown",
        }  # fmt: skip
        edit = WeightEdit(sites, metadata)
        if edit.is_empty:
            raise InvalidValueError("every lambda is 0: the edit changes nothing. Make it again with a smaller rho.")
        return edit
    except InvalidValueError as error:
        raise ArtifactError(f"{path}: {error}") from error


def _by_site(entries: Any, block: Block) -> dict[Site, _Factors]:
    sites: dict[Site, _Factors] = {}
    for key, entry in _dictionary(entries, block).items():
        if not (isinstance(key, tuple) and len(key) == 2 and all(type(part) is int and part >= 0 for part in key)):
            raise InvalidValueError(f"{block}: {key!r} is not a pair (layer, component), both counted from 0.")
        name = f"{block}[{key[0]}, {key[1]}]"
        magnitude = _number(_dictionary(entry, name).get("lambda"), f"{name}: lambda")
        k = _unit_vector(entry.get("k_hat"), f"{name}.k_hat") if block == "attn" else torch.ones(1)
        sites.setdefault(Site(key[0], block), {})[key[1]] = magnitude, k
    return sites


def _site_edit(
    model: LanguageModel, site: Site, u: Float[Tensor, " d"], factors: _Factors, settings: Hyperparameters
) -> SiteEdit:
    """One site's edit, with the shapes of the model."""
    if site not in model.sites:
        raise MismatchError(f"the edit has {site}, but {model.name!r} has no such site: it is for another model.")
    module = model.sites[site]
    (d, m), width, rho = module.shape, module.component_width, settings.rho(site.block)
    if u.numel() != d or len(module.projections) != 1:
        raise MismatchError(
            f"{site}: the edit is for one matrix with {u.numel()} outputs, but {model.name!r} has "
            f"{len(module.projections)} with {d}: it is for another model."
        )
    if rho is None:
        raise InvalidValueError(f"there are factors of {site}, but rho_{site.block} is off: the file is damaged.")
    row, magnitude = torch.zeros(m), torch.zeros(m // width)
    for index, (value, k) in factors.items():
        if index >= m // width or k.numel() != width:
            raise MismatchError(
                f"{site.block}[{site.layer}, {index}]: {model.name!r} has {m // width} components of {width} columns "
                "there: the edit is for another model."
            )
        row[index * width : (index + 1) * width] = value * k
        magnitude[index] = value
    if site.block == "mlp":
        folded = torch.sign(u @ module.weight.to("cpu", torch.float32))
        magnitude = magnitude * torch.where(folded == 0, 1.0, folded)
    importance = magnitude.sign() * (magnitude.abs() * (rho * (1 - settings.alpha)) + rho * settings.alpha)
    return SiteEdit(u, row, magnitude, importance)


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise InvalidValueError(f"{what} must be a finite number, got {value!r}.")
    return float(value)


def _unit_vector(value: Any, what: str) -> Float[Tensor, " _"]:
    if not isinstance(value, Tensor) or value.ndim != 1 or not value.is_floating_point():
        got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InvalidValueError(f"{what} must be a vector of floating-point numbers, got {got}.")
    vector = value.detach().to("cpu", torch.float32)
    if not abs(vector.norm().item() - 1) <= _UNIT_TOLERANCE:
        raise InvalidValueError(f"{what} must be of length 1, but is of length {vector.norm().item():.3g}.")
    return vector
