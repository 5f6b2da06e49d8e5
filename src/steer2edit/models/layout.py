"""Layouts: which modules of an architecture are sites. The knowledge is data, in `layouts.toml`."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from steer2edit.core import BLOCKS, Block
from steer2edit.errors import LayoutError

_PATHS = {"layers", "attn", "ssm", "mlp"}
_LISTS = {"readers", "left_out", "model_types"}
_TABLES = {"heads", "experts"}


@dataclass(frozen=True)
class ExpertLayout:
    """Where a layer's mixture of experts is. All paths are within a layer.

    Args:
        module: the module of the routed experts, whose parameter `down_proj` is [experts, d, m].
        outputs: modules whose outputs add up to what the block writes to the residual stream.
        shared: output projection of the shared expert, if a layer has one.
        transposed: `down_proj` is [experts, m, d].
        scaled_inputs: every expert is given every token, its input multiplied by its routing weight.
    """

    module: str
    outputs: tuple[str, ...]
    shared: str | None = None
    transposed: bool = False
    scaled_inputs: bool = False


@dataclass(frozen=True)
class Layout:
    """Where the residual writers of an architecture are. Of several paths, the first that exists in a layer counts.

    Args:
        name: of the layout.
        layers: paths of the list of decoder layers.
        attn: paths of the attention's output projection within a layer.
        mlp: paths of the MLP's output projection within a layer.
        ssm: paths of a state-space mixer's output projection within a layer.
        readers: paths of the other modules within a layer that hold a matrix.
        left_out: paths of modules that write to the residual stream but have no components.
        heads: the config's attribute with the number of heads, by path, where it is not `num_attention_heads`.
        experts: the mixture of experts of a layer, which together are its mlp site.
        model_types: the language model's `config.model_type`s it is known to fit.
    """

    name: str
    layers: tuple[str, ...]
    attn: tuple[str, ...] = ()
    mlp: tuple[str, ...] = ()
    ssm: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    heads: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    experts: ExpertLayout | None = None
    model_types: tuple[str, ...] = ()

    @classmethod
    def from_table(cls, name: str, table: dict[str, Any]) -> "Layout":
        """A layout from one table of a layouts file.

        Raises:
            LayoutError: a key is missing, unknown, or of the wrong type.
        """
        needed = {"layers", "attn"} | (set() if "experts" in table else {"mlp"})
        if missing := needed - table.keys():
            raise LayoutError(f"layout {name!r} lacks {', '.join(sorted(missing))}: see docs/add-a-model.md.")
        if unknown := table.keys() - _PATHS - _LISTS - _TABLES:
            raise LayoutError(
                f"layout {name!r} has unknown keys {', '.join(sorted(unknown))}: see docs/add-a-model.md."
            )
        wrong = [key for key in _PATHS & table.keys() if not (_is_text_list(table[key]) or isinstance(table[key], str))]
        wrong += [key for key in _LISTS & table.keys() if not _is_text_list(table[key])]
        wrong += [key for key in _TABLES & table.keys() if not isinstance(table[key], dict)]
        if "heads" not in wrong and not _is_text_list(list(table.get("heads", {}).values())):
            wrong.append("heads")
        if wrong:
            raise LayoutError(f"layout {name!r}: {', '.join(sorted(wrong))} must be text, and lists must hold text.")
        paths = {key: _texts(table.get(key, ())) for key in _PATHS}
        if both := set(paths["attn"]) & set(paths["mlp"]):
            raise LayoutError(f"layout {name!r}: attn and mlp are both {both.pop()!r}; one module cannot be two sites.")
        experts = _experts(name, table["experts"]) if "experts" in table else None
        lists = {key: _texts(table.get(key, ())) for key in _LISTS}
        return cls(name, heads=MappingProxyType(dict(table.get("heads", {}))), experts=experts, **paths, **lists)

    @classmethod
    def given(cls, layout: "Path | Layout | None") -> "Layout | None":
        """The layout itself, or the one of a file; `None` for none."""
        return layout if layout is None or isinstance(layout, Layout) else cls.from_file(layout)

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

    def paths(self, block: Block) -> tuple[str, ...]:
        """Paths of a block's output projection within a layer."""
        return {"attn": self.attn, "ssm": self.ssm, "mlp": self.mlp}[block]

    @property
    def named(self) -> set[str]:
        """Every module within a layer that this layout accounts for."""
        experts = {self.experts.module, *filter(None, [self.experts.shared])} if self.experts else set()
        sites = {path for block in BLOCKS for path in self.paths(block)}
        return {*sites, *experts, *self.readers, *self.left_out}


def _experts(name: str, table: dict[str, Any]) -> ExpertLayout:
    texts, flags = {"module", "shared"}, {"transposed", "scaled_inputs"}
    good = (
        {"module", "outputs"} <= table.keys() <= texts | flags | {"outputs"}
        and all(isinstance(table[key], str) for key in texts & table.keys())
        and all(isinstance(table[key], bool) for key in flags & table.keys())
        and _is_text_list(table["outputs"])
        and bool(table["outputs"])
    )
    if not good:
        raise LayoutError(
            f"layout {name!r}: experts must be a table with module (text) and outputs (a list of text), and may have "
            "shared (text), transposed and scaled_inputs (true or false): see docs/add-a-model.md."
        )
    return ExpertLayout(**{**table, "outputs": tuple(table["outputs"])})


def _texts(value: str | list[str] | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _is_text_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


@cache
def known_layouts() -> tuple[Layout, ...]:
    """The layouts that ship with the package."""
    text = resources.files("steer2edit.models").joinpath("layouts.toml").read_text(encoding="utf-8")
    return tuple(Layout.from_table(name, table) for name, table in tomllib.loads(text).items())
