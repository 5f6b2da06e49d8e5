"""A causal language model with its tokenizer, its sites and its identity."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steer2edit.core import Site, SteeringVectors, WeightEdit
from steer2edit.errors import MismatchError
from steer2edit.models.chat_format import ChatFormat, recorded_chat, template_of
from steer2edit.models.layout import Layout
from steer2edit.models.site_module import SiteModule
from steer2edit.models.sites import ModelSites, find_sites

_SAMPLED_ROWS = 16
_EXACT_IN_EVERY_DTYPE = 2.0**-16  # a bf16 number at least this large is representable in fp16


@dataclass(frozen=True)
class LanguageModel:
    """What every step of the pipeline works on."""

    network: PreTrainedModel  # a transformers causal language model
    tokenizer: PreTrainedTokenizerBase | None = None  # its tokenizer, or `None` where only weights are needed
    name: str = "unnamed"  # the Hub id or path that a user would load it by
    layout: Layout | None = None  # the user's own layout, instead of what is found
    revision: str | None = None  # commit of the Hub repository, if known
    chat: ChatFormat = field(default_factory=ChatFormat)  # how prompts are rendered
    gguf_sha256: str | None = None  # of the GGUF file that it was read from, if it was
    structure: ModelSites = field(init=False, repr=False)  # where it can be edited, and what was proven of that
    sites: dict[Site, SiteModule] = field(init=False)  # the projections that can be edited
    layers: nn.ModuleList = field(init=False, repr=False)  # the decoder layers

    def __post_init__(self) -> None:
        self.network.eval()
        found = find_sites(self.network, self.layout)
        vars(self).update(structure=found, sites=found.sites, layers=self.network.get_submodule(found.path))

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the input embedding."""
        device: torch.device = self.network.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return next(iter(self.sites.values())).projections[0].dtype

    @property
    def context_length(self) -> int | None:
        """Longest sequence the model takes, if its config says."""
        return getattr(self.network.config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the weights an edit acts on: SHA-256 over the sites' names, shapes and sampled rows.

        16 evenly spaced whole rows of every site (so that a change of any one component is seen) are rounded to
        bfloat16, and entries too small to survive float16 to zero, so that the same checkpoint has one fingerprint
        whether it is loaded in float32, bfloat16 or (from a half-precision checkpoint) float16. It is taken once, of
        the base weights: edits that are merged in for a while do not change what model this is.
        """

        def rows() -> Iterator[Tensor]:
            for site in self.sites.values():
                with site.in_memory():
                    for projection in site.projections:
                        yield projection.weight[:: sample_step(projection.shape[0])]

        return sampled_fingerprint({p.key: p.shape for s in self.sites.values() for p in s.projections}, rows())

    def identity(self) -> dict[str, Any]:
        """What of a model a run that is gone on with must have again."""
        return {"model": self.fingerprint, "dtype": str(self.dtype), "chat": recorded_chat(self.describe())}

    def require_fit(
        self, artifact: WeightEdit | SteeringVectors, *, allow_mismatch: bool = False, allow_missing: bool = True
    ) -> None:
        """Refuse an edit or vectors of another shape or (unless `allow_missing`) with sites missing.

        And (unless `allow_mismatch`) of another model, another system message or other arguments of the chat template;
        with a MismatchError.
        """
        what = "edits" if isinstance(artifact, WeightEdit) else "vectors"
        self.require_shapes(artifact.shapes, what, complete=not allow_missing)
        if allow_mismatch:
            return
        made_with = recorded_chat(artifact.metadata)
        for key, what_for, own in (
            ("arguments", "template arguments", self.chat.arguments), ("system", "system message", self.chat.system)
        ):  # fmt: skip
            if made_with and made_with.get(key) != own:
                raise MismatchError(
                    f"these {what} were made with the {what_for} {json.dumps(made_with.get(key))}, but {self.name!r} "
                    f"is used with {json.dumps(own)}. Leave out --template-arg and --system to use theirs "
                    "(load(..., like=METADATA)), or pass --allow-mismatch (allow_mismatch=True) if you mean it."
                )
        made_on = artifact.metadata.get("model") or {}
        if "fingerprint" in made_on and made_on["fingerprint"] != self.fingerprint:
            raise MismatchError(
                f"these {what} were made on {made_on.get('name', 'another model')!r} (fingerprint "
                f"{made_on['fingerprint'][:12]}), but {self.name!r} has fingerprint {self.fingerprint[:12]}: other "
                "weights, or already edited ones. Use the model they were made on, or pass --allow-mismatch "
                "(allow_mismatch=True) if you know that they fit."
            )

    def require_shapes(
        self, shapes: Mapping[Site, tuple[int, int | None]], what: str, *, complete: bool = False
    ) -> None:
        """Refuse an artifact with a site the model lacks, another shape, or (if `complete`) sites missing."""
        for site, (d, m) in shapes.items():
            own = self.sites[site].shape if site in self.sites else None
            if own is None or d != own[0] or m not in (None, own[1]):
                wanted = f"outputs of {d} entries" if m is None else f"a weight of shape {[d, m]}"
                there = "no such site" if own is None else list(own)
                raise MismatchError(
                    f"{site}: these {what} are for {wanted}, but {self.name!r} has {there}. Use the model that they "
                    "were made for."
                )
        missing = [str(site) for site in self.sites if site not in shapes]
        if complete and missing:
            raise MismatchError(
                f"these {what} lack {len(missing)} of the {len(self.sites)} sites of {self.name!r}: "
                f"{', '.join(missing[:6])}{', ...' if len(missing) > 6 else ''}. Extract all layers, or pass "
                "--allow-missing (allow_missing=True) to leave those sites as they are."
            )

    def describe(self) -> dict[str, Any]:
        """JSON-able identity for artifacts."""
        return {
            "name": self.name,
            "revision": self.revision,
            "model_type": self.network.config.model_type,
            "fingerprint": self.fingerprint,
            **({} if self.gguf_sha256 is None else {"gguf_sha256": self.gguf_sha256}),
            **({} if self.tokenizer is None else {"chat": self.chat.describe(template_of(self.tokenizer))}),
        }


def sample_step(rows: int) -> int:
    """Every which row of a weight with d rows is sampled: 16 evenly spaced ones, or all of fewer."""
    return max(1, rows // _SAMPLED_ROWS)


def sampled_fingerprint(shapes: Mapping[str, tuple[int, int]], samples: Iterable[Tensor]) -> str:
    """The fingerprint of weights from their shapes [d, m] and sampled rows [k, m], in the same order."""
    digest = hashlib.sha256(json.dumps({name: list(shape) for name, shape in shapes.items()}).encode())
    for sample in samples:
        rounded = sample.to("cpu", torch.float32).to(torch.bfloat16)
        rounded = torch.where(rounded.abs() < _EXACT_IN_EVERY_DTYPE, 0, rounded)
        digest.update(rounded.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
