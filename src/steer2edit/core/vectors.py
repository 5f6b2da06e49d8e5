"""Steering vectors: the class means of each site's output and input, and what is known about them.

A layer adds its attention's and its MLP's output to the residual stream; what it hands on is its *block output*. A
direction of block outputs, as control vectors of other tools are, is another quantity than the two steering vectors of
the layer's sites, and is never turned into them silently: `SteeringVectors.used_at` is told where to use it.

Shapes: d = width of a site's output (the residual stream), m = width of its input.
"""

import copyreg
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core.components import BLOCKS, Site
from steer2edit.errors import InvalidValueError

UseAt = Literal["attn", "mlp", "both"]
"""Which projections of a layer take its block direction as their steering vector."""


def _read_only(mapping: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(mapping)


copyreg.pickle(MappingProxyType, lambda proxy: (_read_only, (dict(proxy),)))  # copies, and pickles for other processes


@dataclass(frozen=True)
class ClassMeans:
    """Mean of one quantity over the positive and over the negative responses (each response weighs the same)."""

    positive: Float[Tensor, " n"]
    negative: Float[Tensor, " n"]

    @classmethod
    def of_direction(cls, direction: Tensor, what: str) -> "ClassMeans":
        """A direction made elsewhere, which has no class means: `positive = v`, `negative = 0`; float32, on the CPU."""
        if direction.ndim != 1 or not direction.numel() or not direction.is_floating_point():
            got = f"{str(direction.dtype)[6:]} of shape {list(direction.shape)}"
            raise InvalidValueError(f"{what}: a direction is a vector of floating-point numbers, got {got}.")
        v = direction.detach().to("cpu", torch.float32, copy=True)
        return cls(v, torch.zeros_like(v))

    @property
    def difference(self) -> Float[Tensor, " n"]:
        """positive − negative. Source: Eq. 1."""
        return self.positive - self.negative

    @property
    def midpoint(self) -> Float[Tensor, " n"]:
        """½ (positive + negative). Source: official code (the input mean μ)."""
        return 0.5 * (self.positive + self.negative)

    @property
    def tensors(self) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Both."""
        return self.positive, self.negative

    def require_finite(self, what: str, name: str) -> None:
        """Refuse means that overflowed, with an InvalidValueError: an entry is NaN or infinite."""
        for sign, tensor in zip(("positive", "negative"), self.tensors, strict=True):
            if bad := int((~torch.isfinite(tensor)).sum()):
                raise InvalidValueError(
                    f"{what}: the {sign} {name} mean has {bad} non-finite entries of {tensor.numel()}. "
                    "A model that overflows in float16 does this: extract again with --dtype bfloat16 or float32."
                )


@dataclass(frozen=True)
class SiteEffects:
    """What one site's input columns do to the model, to first order, where the site writes them along u."""

    direction: Float[Tensor, " d"]  # u: what moves the decision most for its drift (`method.natural_direction`)
    attribute: Float[Tensor, " m"]  # s: how much more the attribute is there, in nats, per unit of a column
    # C ≥ 0: curvature of KL(base ‖ edited) per token along a column: KL ≈ ½ Σ C_j a_j², columns apart
    drift: Float[Tensor, " m"]
    # ŝ: the effects with all columns together, so that what drifts, and what is done where the behaviour is not
    # wanted, cancels (`method.gate`)
    gated: Float[Tensor, " m"]
    agreement: float  # cosine between the s of two halves of the pairs of responses, of which u was taken from one

    def __post_init__(self) -> None:
        if {tensor.shape for tensor in self.tensors[1:]} != {self.attribute.shape}:
            sizes = ", ".join(str(tensor.numel()) for tensor in self.tensors[1:])
            raise InvalidValueError(
                f"effects, curvatures and gated effects of {sizes} columns cannot belong to one projection."
            )
        if not all(bool(torch.isfinite(values).all()) for values in (*self.tensors, torch.tensor(self.agreement))):
            raise InvalidValueError("an effect has entries that are not finite: measure with --dtype float32.")
        if bool((self.drift < 0).any()):
            raise InvalidValueError("the curvature of a drift cannot be negative.")

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """u, s, C and ŝ."""
        return self.direction, self.attribute, self.drift, self.gated


@dataclass(frozen=True)
class SiteMeans:
    """What one site's steering vector is made of; `None` where something has not been measured."""

    output: ClassMeans  # of the projection's output y, [d]
    input: ClassMeans | None = None  # of its input x, [m]; of an expert, over the tokens that were routed to it
    # how many tokens each expert of a mixture was given, the shared one last, [e]; `None` for a dense site
    tokens: ClassMeans | None = None
    effects: SiteEffects | None = None  # what its columns do

    def __post_init__(self) -> None:
        if self.effects is not None and self.effects.direction.shape != self.output.positive.shape:
            written, d = self.effects.direction.numel(), self.output.positive.numel()
            raise InvalidValueError(
                f"effects along a direction of {written} numbers are not of a site that writes {d}."
            )

    @property
    def steering_vector(self) -> Float[Tensor, " d"]:
        """v = ȳ_pos − ȳ_neg. Source: Eq. 1."""
        return self.output.difference

    @property
    def seen(self) -> list[int] | None:
        """Tokens of both classes by expert."""
        return None if self.tokens is None else [int(n) for n in self.tokens.positive + self.tokens.negative]

    @property
    def named(self) -> dict[str, ClassMeans]:
        """All class means by name."""
        found = {"output": self.output, "input": self.input, "tokens": self.tokens}
        return {name: means for name, means in found.items() if means is not None}


@dataclass(frozen=True, eq=False)
class SteeringVectors:
    """One steering vector per site, with the input means that a conversion needs; or one direction per layer."""

    sites: Mapping[Site, SiteMeans]  # float32, on the CPU; empty where only whole layers' outputs are known
    # JSON-able facts: model, fingerprint, contrast, counts, span rule, ...
    metadata: Mapping[str, Any] = field(default_factory=dict)
    diagnosis: Mapping[str, Any] | None = None  # JSON-able, by site name
    # of whole layers' outputs by layer, [d], which control vectors of other tools are; `None` where not measured
    block_outputs: Mapping[int, ClassMeans] | None = None

    @property
    def shapes(self) -> dict[Site, tuple[int, int | None]]:
        """(d, m) by site, m `None` where the input was not measured."""
        return {
            site: (means.steering_vector.numel(), None if means.input is None else means.input.positive.numel())
            for site, means in self.sites.items()
        }

    def __post_init__(self) -> None:
        if not (self.sites if self.block_outputs is None else self.block_outputs):
            raise InvalidValueError("steering vectors need at least one site, got none, or else at least one layer.")
        for site, means in self.sites.items():
            for name, pair in means.named.items():
                pair.require_finite(str(site), name)
        object.__setattr__(self, "sites", MappingProxyType(dict(sorted(self.sites.items()))))
        if self.block_outputs is not None:
            layers = dict(sorted(self.block_outputs.items()))
            entries = next(iter(self.block_outputs.values())).positive.numel()
            for layer, output in layers.items():
                if layer < 0:
                    raise InvalidValueError(f"layer must be >= 0, got {layer}: layers count from 0.")
                for size in (tensor.numel() for tensor in output.tensors if tensor.numel() != entries):
                    raise InvalidValueError(
                        f"layer {layer}: the output has {size} entries, but another has {entries}: all layers of a "
                        "model write to one residual stream."
                    )
                output.require_finite(f"layer {layer}", "output")
            object.__setattr__(self, "block_outputs", MappingProxyType(layers))

    @classmethod
    def from_mapping(cls, vectors: Mapping[Any, Tensor], **metadata: Any) -> "SteeringVectors":
        """Vectors that were made elsewhere: site (or its name, `L3.mlp`) or layer → v [d]. Input means stay unknown."""
        sites: dict[Site, SiteMeans] = {}
        layers: dict[int, ClassMeans] = {}
        for key, vector in vectors.items():
            if isinstance(key, int):
                layers[key] = ClassMeans.of_direction(vector, f"layer {key}")
                continue
            site = key if isinstance(key, Site) else Site.parse(key)
            if site in sites:
                raise InvalidValueError(f"{site} is given twice: name every site once.")
            sites[site] = SiteMeans(ClassMeans.of_direction(vector, str(site)))
        return cls(sites, {"origin": "imported", **metadata}, block_outputs=layers or None)

    def used_at(self, use_at: UseAt) -> "SteeringVectors":
        """Steering vectors that take each layer's block direction as v of the chosen projections of that layer.

        Where a layer adds its MLP's output to the residual stream as it is, without a norm or a factor, adding γv to
        that output is adding γv to the block's output: with `mlp`, steering does what the block direction was made for.
        `both` adds it twice per layer. The block outputs stay with the vectors, and the choice is in the metadata.
        """
        if use_at not in get_args(UseAt):
            raise InvalidValueError(f"block directions are used at {', '.join(get_args(UseAt))}, got {use_at!r}.")
        blocks = [block for block in BLOCKS if block == use_at or (use_at == "both" and block != "ssm")]
        layers = (self.block_outputs or {}).items()
        sites = {Site(layer, block): SiteMeans(output) for layer, output in layers for block in blocks}
        return replace(self, sites=sites, metadata={**self.metadata, "block_outputs_used_at": use_at})

    @property
    def has_input_means(self) -> bool:
        """Whether every site has the input means that a conversion needs."""
        return all(means.input is not None for means in self.sites.values())

    @property
    def has_effects(self) -> bool:
        """Whether every site has the measured effects that the recommended edit is made of."""
        return all(means.effects is not None for means in self.sites.values())

    def digest(self) -> str:
        """SHA-256 over every site's name and means: which vectors an edit was made from."""
        digest = hashlib.sha256()
        for site, means in self.sites.items():
            effects = means.effects.tensors if means.effects else ()
            for tensor in (*(tensor for pair in means.named.values() for tensor in pair.tensors), *effects):
                digest.update(f"{site} {list(tensor.shape)}".encode())
                digest.update(tensor.to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def with_inputs(self, measured: Mapping[Site, SiteMeans], **metadata: Any) -> "SteeringVectors":
        """The same vectors with input means (and how experts were used) filled in where they were missing."""
        sites = {
            s: m if m.input else replace(m, input=measured[s].input, tokens=measured[s].tokens)
            for s, m in self.sites.items()
        }
        return replace(self, sites=sites, metadata={**self.metadata, **metadata})
