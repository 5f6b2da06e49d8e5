"""Layouts: which modules of an architecture are sites, as they are found, or as a user writes them down."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, StrictBool, StrictStr, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from steer2edit.core import BLOCKS
from steer2edit.errors import LayoutError

_CONFIG = ConfigDict(extra="forbid")

Names = tuple[StrictStr, ...]
Paths = Annotated[Names, BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""In a file: one path, or a list of them."""


def _reasons(value: Any) -> Any:
    return dict.fromkeys(value, "its layout says so") if isinstance(value, list | tuple) else value


@dataclass(frozen=True, config=_CONFIG)
class ExpertLayout:
    """Where a layer's mixture of experts is. All paths are within a layer."""

    module: StrictStr  # the module of the routed experts, whose parameter `down_proj` is [experts, d, m]
    # modules whose outputs add up to what the block writes to the residual stream
    outputs: Annotated[Names, Field(min_length=1)]
    shared: StrictStr | None = None  # output projection of the shared expert, if a layer has one
    transposed: StrictBool = False  # `down_proj` is [experts, m, d]
    scaled_inputs: StrictBool = False  # every expert is given every token, its input multiplied by its routing weight


@dataclass(frozen=True, config=_CONFIG)
class Layout:
    """Where the residual writers of an architecture are. Of several paths, the first that exists in a layer counts."""

    name: str  # of the layout
    layers: Paths  # paths of the list of decoder layers
    attn: Paths = ()  # paths of the attention's output projection within a layer
    mlp: Paths = ()  # paths of the MLP's output projection within a layer
    ssm: Paths = ()  # paths of a state-space mixer's output projection within a layer
    # paths of modules that write to the residual stream but are not edited, with the reason; in a file, or a list
    left_out: Annotated[Mapping[StrictStr, StrictStr], BeforeValidator(_reasons)] = field(default_factory=dict)
    # the config's attribute with the number of heads, by path, where it is not `num_attention_heads`
    heads: Mapping[StrictStr, StrictStr] = field(default_factory=dict)
    experts: ExpertLayout | None = None  # the mixture of experts of a layer, which together are its mlp site

    @model_validator(mode="after")
    def _blocks_are_named_apart(self) -> "Layout":
        if both := set(self.attn) & set(self.mlp):
            raise ValueError(f"attn and mlp are both {both.pop()!r}; one module cannot be two sites")
        return self

    @classmethod
    def from_table(cls, name: str, table: Mapping[str, Any]) -> "Layout":
        """A layout from one table of a layout file; a LayoutError for a key that is missing, unknown or wrong."""
        try:
            return cls(**{**table, "name": name})
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}".removeprefix(": ") for one in error.errors()]
            raise LayoutError(f"layout {name!r}: {'; '.join(faults)}. See docs/add-a-model.md.") from error

    @classmethod
    def given(cls, layout: "Path | Layout | None") -> "Layout | None":
        """The layout itself, or that of a TOML file with one table; `None` for none. A LayoutError where it is none."""
        if layout is None or isinstance(layout, Layout):
            return layout
        try:
            tables = tomllib.loads(layout.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise LayoutError(f"cannot read a layout from {layout}: {error}. See docs/add-a-model.md.") from error
        if len(tables) != 1 or not isinstance(next(iter(tables.values())), dict):
            raise LayoutError(f"{layout} must hold exactly one [table], the layout. See docs/add-a-model.md.")
        return cls.from_table(*next(iter(tables.items())))

    def to_toml(self) -> str:
        """The layout as the text of a layout file."""
        lines = [f"[{self.name}]", f"layers = {_value(self.layers)}"]
        lines += [f"{block} = {_value(paths)}" for block in BLOCKS if (paths := getattr(self, block))]
        experts = {key: value for key, value in vars(self.experts).items() if value} if self.experts else {}
        for name, table in (("experts", experts), ("heads", self.heads), ("left_out", self.left_out)):
            if table:
                own = ", ".join(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in table.items())
                lines.append(f"{name} = {{ {own} }}")
        return "\n".join(lines) + "\n"


def _value(paths: tuple[str, ...]) -> str:
    return json.dumps(paths[0] if len(paths) == 1 else paths)
