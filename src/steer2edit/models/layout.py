"""Layouts: which modules of an architecture are sites. The knowledge is data, in `layouts.toml`."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from steer2edit.core import BLOCKS, Block, Site
from steer2edit.errors import LayoutError
from steer2edit.models.site_module import SiteModule

_EXPERT_WORDS = ("expert", "router", "block_sparse_moe")


@dataclass(frozen=True)
class Layout:
    """Where the residual writers of an architecture are.

    Args:
        name: of the layout.
        model_types: the `config.model_type`s it is known to fit.
        layers: path of the list of decoder layers.
        attn: path of the attention's output projection within a layer.
        mlp: path of the MLP's output projection within a layer.
        readers: paths of the other modules within a layer that hold a matrix.
    """

    name: str
    layers: str
    attn: str
    mlp: str
    readers: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()

    @classmethod
    def from_table(cls, name: str, table: dict[str, Any]) -> "Layout":
        """A layout from one table of a layouts file.

        Raises:
            LayoutError: a key is missing, unknown, or of the wrong type.
        """
        texts, lists = {"layers", "attn", "mlp"}, {"readers", "model_types"}
        if missing := texts - table.keys():
            raise LayoutError(f"layout {name!r} lacks {', '.join(sorted(missing))}: see docs/add-a-model.md.")
        if unknown := table.keys() - texts - lists:
            raise LayoutError(
                f"layout {name!r} has unknown keys {', '.join(sorted(unknown))}: see docs/add-a-model.md."
            )
        wrong = [k for k in texts if not isinstance(table[k], str)]
        wrong += [k for k in lists & table.keys() if not _is_text_list(table[k])]
        if wrong:
            raise LayoutError(f"layout {name!r}: {', '.join(sorted(wrong))} must be text, and lists must hold text.")
        if table["attn"] == table["mlp"]:
            raise LayoutError(
                f"layout {name!r}: attn and mlp are both {table['attn']!r}; one module cannot be two sites."
            )
        return cls(
            name,
            layers=table["layers"],
            attn=table["attn"],
            mlp=table["mlp"],
            readers=tuple(table.get("readers", ())),
            model_types=tuple(table.get("model_types", ())),
        )

    @classmethod
    def from_file(cls, path: Path) -> "Layout":
        """A user's own layout: a TOML file with one table, as in `layouts.toml`.

        Raises:
            LayoutError: the file is missing, is not TOML, or does not hold exactly one layout.
        """
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise LayoutError(f"cannot read a layout from {path}: {error}. See docs/add-a-model.md.") from error
        if len(tables) != 1 or not isinstance(next(iter(tables.values())), dict):
            raise LayoutError(f"{path} must hold exactly one [table], the layout. See docs/add-a-model.md.")
        return cls.from_table(*next(iter(tables.items())))

    def projection(self, block: Block) -> str:
        """Path of a block's output projection within a layer."""
        return self.attn if block == "attn" else self.mlp

    def unmatched(self, layer: nn.Module) -> tuple[list[str], list[str]]:
        """(projections of this layout that the layer lacks, matrices of the layer that this layout does not name)."""
        matrices = _matrix_owners(layer)
        missing = [self.projection(block) for block in BLOCKS if self.projection(block) not in matrices]
        named = {self.attn, self.mlp, *self.readers}
        return missing, [name for name in matrices if name not in named]


def _is_text_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _matrix_owners(layer: nn.Module) -> list[str]:
    """Names of the modules in a layer that own a parameter with two or more axes; its own parameters by name."""
    owners = [
        name if name else parameter_name
        for name, module in layer.named_modules()
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim >= 2
    ]
    return list(dict.fromkeys(owners))


@cache
def known_layouts() -> tuple[Layout, ...]:
    """The layouts that ship with the package."""
    text = resources.files("steer2edit.models").joinpath("layouts.toml").read_text(encoding="utf-8")
    return tuple(Layout.from_table(name, table) for name, table in tomllib.loads(text).items())


def find_sites(model: PreTrainedModel, layout: Layout | None = None) -> dict[Site, SiteModule]:
    """The sites of a model, in order, by the layout that covers every matrix of every layer.

    A model type that no layout names is accepted if one layout fits its layers completely.

    Args:
        model: a causal language model.
        layout: the user's own, instead of the known ones.

    Raises:
        LayoutError: no layout fits; the message lists what was and what was not matched.
    """
    config = model.config.get_text_config()
    candidates = (layout,) if layout else _candidates(config.model_type)
    problems = []
    for candidate in candidates:
        layers = _submodule(model, candidate.layers)
        if not isinstance(layers, nn.ModuleList) or not len(layers):
            problems.append(f"layout {candidate.name!r}: there is no list of layers at {candidate.layers!r}")
            continue
        gaps = _gaps(candidate, layers)
        if not gaps:
            return _collect(candidate, layers, config)
        problems.append(f"layout {candidate.name!r}: {gaps}")
    raise LayoutError(_explain(model, problems))


def _candidates(model_type: str) -> tuple[Layout, ...]:
    exact = tuple(layout for layout in known_layouts() if model_type in layout.model_types)
    return exact or known_layouts()


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    module: Any = model
    for name in path.split("."):
        module = getattr(module, name, None)
    return module if isinstance(module, nn.Module) else None


def _gaps(layout: Layout, layers: nn.ModuleList) -> str:
    for index, layer in enumerate(layers):
        missing, unnamed = layout.unmatched(layer)
        if missing or unnamed:
            matched = [p for p in (layout.attn, layout.mlp) if p not in missing]
            return (
                f"layer {index}: matched {', '.join(matched) or 'nothing'}; "
                f"missing {', '.join(missing) or 'nothing'}; not matched {', '.join(unnamed) or 'nothing'}"
            )
    return ""


def _explain(model: PreTrainedModel, problems: list[str]) -> str:
    model_type = model.config.model_type
    names = [name for name, _ in model.named_parameters()]
    if any(word in name for name in names for word in _EXPERT_WORDS):
        return (
            f"{model_type!r} is a mixture of experts: its routed experts write to the residual stream too, and "
            "this version edits dense models only. Use a dense model of the same family."
        )
    tried = "\n  ".join(problems)
    return (
        f"no layout covers every residual writer of the model type {model_type!r}:\n  {tried}\n"
        "Describe the model in a layout file and pass it with --layout FILE (docs/add-a-model.md)."
    )


def _collect(layout: Layout, layers: nn.ModuleList, config: PreTrainedConfig) -> dict[Site, SiteModule]:
    sites = {}
    for index, layer in enumerate(layers):
        for block in BLOCKS:
            module = layer.get_submodule(layout.projection(block))
            site = Site(index, block)
            name = f"{layout.layers}.{index}.{layout.projection(block)}"
            sites[site] = SiteModule(site, name, module, _width(site, module, config), isinstance(module, Conv1D))
    return sites


def _width(site: Site, module: nn.Module, config: PreTrainedConfig) -> int:
    """Columns per component: one for a neuron, (input width) / (number of heads) for a head."""
    if site.block == "mlp":
        return 1
    weight = module.get_parameter("weight")
    columns = weight.shape[0 if isinstance(module, Conv1D) else 1]
    heads = config.num_attention_heads
    if columns % heads:
        raise LayoutError(f"{site}: {columns} input columns do not divide into the config's {heads} attention heads.")
    return int(columns // heads)
