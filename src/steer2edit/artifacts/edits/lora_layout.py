"""Where a LoRA of any rank goes in a model: one target per module, or per parameter that holds fused experts.

Layout of PEFT for a parameter with E experts and rank r: `lora_A` [E·r, m] with row e·r + k, `lora_B` [d, r·E] with
column k·E + e.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.artifacts.edits.low_rank import LowRank
from steer2edit.artifacts.edits.peft_files import (
    ADAPTER_FILE,
    CONFIG_FILE,
    Pair,
    adapter_keys,
    base_reference,
    names_in_file,
)
from steer2edit.artifacts.tensors import write_tensors
from steer2edit.core import Site
from steer2edit.models import LanguageModel, Projection
from steer2edit.models.finding import is_mixture


@dataclass(frozen=True)
class LoraTarget:
    """One matrix of a model, or all fused experts of one parameter, with its factors."""

    site: Site  # which it is of
    name: str  # full name of the module; of the module of fused experts
    parameter: str  # full name of the stored weight
    experts: int | None  # how many are fused; `None` for a plain matrix
    a: Float[Tensor, "E r m"]  # A of every expert, [E, r, m]; E = 1 for a plain matrix
    b: Float[Tensor, "d r"]  # B [d, r], the same for every expert
    transposed: bool  # whether the model stores the weight as [m, d]
    by_parameter: bool = False  # whether PEFT is told the parameter instead of the module
    # whether PEFT takes the weight's axes the other way round: it goes by the module's `is_transposed`, which Llama 4's
    # experts lack although they are transposed. A and B then change places.
    swapped: bool = False

    @property
    def pair(self) -> Pair:
        """`lora_A` and `lora_B` as PEFT stores them."""
        if self.swapped:
            return Pair(self.b.T.repeat(len(self.a), 1), self.a.permute(2, 1, 0).flatten(1))
        return Pair(self.a.flatten(0, 1), self.b[:, :, None].expand(-1, -1, len(self.a)).flatten(1))


def lora_targets(model: LanguageModel, factors: Mapping[Site, LowRank], rank: int) -> list[LoraTarget]:
    """Every target of an adapter, with factors padded to one rank.

    Raises:
        MismatchError: a site that the model lacks, or another shape.
    """
    model.require_shapes({site: (f.b.shape[0], f.a.shape[1]) for site, f in factors.items()}, "edits")
    # What PEFT would not find by its name: it refuses a Mamba's output projection, and in a mixture of experts (also in
    # one that is not edited) it takes any down_proj for the routed experts' of an older version of transformers.
    by_parameter = {"ssm", "mlp"} if any(map(is_mixture, model.network.modules())) else {"ssm"}
    targets = []
    for site, low_rank in factors.items():
        padded = low_rank.padded(rank)
        grouped = groupby(model.sites[site].projections, key=lambda p: p.parameter_name)
        targets += [_target(site, list(group), padded, site.block in by_parameter) for _, group in grouped]
    return targets


def _target(site: Site, projections: Sequence[Projection], factors: LowRank, by_parameter: bool) -> LoraTarget:
    first = projections[0]
    return LoraTarget(
        site=site,
        name=first.name,
        parameter=first.parameter_name,
        experts=None if first.expert is None else len(projections),
        a=torch.stack([factors.columns(p.columns).a for p in projections]),
        b=factors.b,
        transposed=first.transposed,
        by_parameter=by_parameter,
        swapped=first.expert is not None and first.transposed != getattr(first.module, "is_transposed", False),
    )


def write_lora(model: LanguageModel, targets: Sequence[LoraTarget], rank: int, directory: Path) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` of rank r = lora_alpha for PEFT."""
    tensors: dict[str, Tensor] = {}
    names = names_in_file(model, [target.name for target in targets])
    for target in targets:
        tensors |= zip(adapter_keys(names[target.name]), target.pair, strict=True)
    write_tensors(tensors, directory / ADAPTER_FILE, {"format": "pt"})
    modules = [t.name for t in targets if not t.by_parameter]
    parameters = [t.parameter for t in targets if t.by_parameter]
    transposed = any(t.transposed for t in targets if not t.by_parameter)
    write_lora_config(model, directory, rank, modules, parameters, transposed=transposed)


def write_lora_config(
    model: LanguageModel,
    directory: Path,
    rank: int,
    modules: Sequence[str],
    parameters: Sequence[str],
    *,
    transposed: bool,
) -> None:
    """Write `adapter_config.json`: r = lora_alpha, and exactly these modules and parameters, sorted."""
    from peft import LoraConfig

    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(modules),
        target_parameters=list(parameters) or None,
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base_reference(model),
        revision=model.revision,
    ).to_dict()
    config["target_modules"] = sorted(modules)  # PEFT keeps a set, whose order changes from run to run
    config["target_parameters"] = sorted(parameters) or None
    text = json.dumps(config, indent=2, sort_keys=True)
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")
