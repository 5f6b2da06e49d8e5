"""Layouts: which modules of an architecture are sites, as they are found, or as a user writes them down."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, StrictBool, StrictStr, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from steer2edit.core import BLOCKS, Block
from steer2edit.errors import LayoutError

_CONFIG = ConfigDict(extra="forbid")
_PROBLEMS = {
    "missing": "is missing",
    "unexpected_keyword_argument": "is no key of a layout",
    "string_type": "must be text",
    "tuple_type": "must be a list of text",
    "too_short": "must not be empty",
    "bool_type": "must be true or false",
    "dict_type": "must be a table",
    "dataclass_type": "must be a table",
}

Names = tuple[StrictStr, ...]
Paths = Annotated[Names, BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""In a file: one path, or a list of them."""


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
    left_out: Names = ()  # paths of modules that write to the residual stream but have no components
    # the config's attribute with the number of heads, by path, where it is not `num_attention_heads`
    heads: Mapping[StrictStr, StrictStr] = field(default_factory=dict)
    experts: ExpertLayout | None = None  # the mixture of experts of a layer, which together are its mlp site
    reasons: Mapping[StrictStr, StrictStr] = field(default_factory=dict)  # why each module that is left out is

    @model_validator(mode="after")
    def _blocks_are_named_apart(self) -> "Layout":
        if both := set(self.attn) & set(self.mlp):
            raise ValueError(f"attn and mlp are both {both.pop()!r}; one module cannot be two sites")
        return self

    @classmethod
    def from_table(cls, name: str, table: Mapping[str, Any]) -> "Layout":
        """A layout from one table of a layout file.

        Raises:
            LayoutError: a key is missing, unknown, or of the wrong type.
        """
        try:
            return cls(name=name, **table)
        except ValidationError as error:
            faults = [(".".join(map(str, e["loc"])), _PROBLEMS.get(e["type"], e["msg"])) for e in error.errors()]
        text = "; ".join(f"{key} {fault}".strip().removeprefix("Value error, ") for key, fault in faults)
        raise LayoutError(f"layout {name!r}: {text}. See docs/add-a-model.md.")

    @classmethod
    def given(cls, layout: "Path | Layout | None") -> "Layout | None":
        """The layout itself, or the one of a file; `None` for none."""
        return layout if layout is None or isinstance(layout, Layout) else cls.from_file(layout)

    @classmethod
    def from_file(cls, path: Path) -> "Layout":
        """A user's own layout: a TOML file with one table.

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

    def to_toml(self) -> str:
        """The layout as the text of a layout file."""
        lines = [f"[{self.name}]", f"layers = {_value(self.layers)}"]
        lines += [f"{block} = {_value(self.paths(block))}" for block in BLOCKS if self.paths(block)]
        if self.experts:
            given = {key: value for key, value in vars(self.experts).items() if value}
            lines.append(f"experts = {{ {', '.join(f'{k} = {_value(v, many=True)}' for k, v in given.items())} }}")
        if self.heads:
            lines.append(
                f"heads = {{ {', '.join(f'{json.dumps(k)} = {json.dumps(v)}' for k, v in self.heads.items())} }}"
            )
        lines += [f"# {path}: {why}" for path, why in self.reasons.items()]
        if self.left_out:
            lines.append(f"left_out = {_value(self.left_out, many=True)}")
        return "\n".join(lines) + "\n"


def _value(value: Any, *, many: bool = False) -> str:
    single = isinstance(value, tuple) and len(value) == 1 and not many
    return json.dumps(value[0] if single else value)
