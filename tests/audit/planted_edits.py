"""Tiny checkpoints with a known edit planted in them by hand: W' = round(W + u aᵀ), a_i = λ_i k_i."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))  # for families.py

from architectures import tiny_architecture
from families import ALL_FAMILIES, tiny_network
from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.models import LanguageModel

logging.disable_progress_bar()


@dataclass(frozen=True)
class Planted:
    """Two checkpoints and what was done to the second."""

    base: Path
    edited: Path
    directions: dict[Site, Tensor]
    rows: dict[Site, Tensor]
    magnitudes: dict[Site, Tensor]
    model: LanguageModel

    @property
    def edit(self) -> WeightEdit:
        sites = {
            site: SiteEdit(u.float(), self.rows[site].float(), lam.float(), torch.zeros_like(lam.float()))
            for site, u in self.directions.items()
            for lam in [self.magnitudes[site]]
        }
        return WeightEdit(sites, {"model": {"name": "tiny"}})


def tiny_base(directory: Path, family: str = "llama", dtype: torch.dtype = torch.bfloat16) -> LanguageModel:
    network = (tiny_network if family in ALL_FAMILIES else tiny_architecture)(family).to(dtype)
    network.save_pretrained(directory)
    return LanguageModel(network, name=str(directory))


def plant(directory: Path, family: str = "llama", dtype: torch.dtype = torch.bfloat16, **options: object) -> Planted:
    """Edit about half of the components of every site with |λ| between 0.06 and 1.5."""
    model = tiny_base(directory / "base", family, dtype)
    planted = plant_in(model, directory / "edited", **options)  # type: ignore[arg-type]
    return Planted(directory / "base", directory / "edited", *planted, model)


def plant_in(
    model: LanguageModel,
    edited: Path,
    blocks: tuple[str, ...] = ("attn", "ssm", "mlp"),
    along: bool = True,
    strength: float = 1.0,
) -> tuple[dict[Site, Tensor], dict[Site, Tensor], dict[Site, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    directions, rows, magnitudes = {}, {}, {}
    for site, module in model.sites.items():
        if site.block not in blocks:
            continue
        d = module.shape[0]
        u = torch.randn(d, generator=generator, dtype=torch.float64)
        u /= u.norm()
        sensitivity = torch.cat([p.weight.double().T @ u for p in module.projections])
        pieces = sensitivity.view(-1, module.component_width)
        n = len(pieces)
        lam = 0.06 + 1.44 * torch.rand(n, generator=generator, dtype=torch.float64) ** 3
        lam *= torch.sign(torch.randn(n, generator=generator, dtype=torch.float64))
        lam[torch.rand(n, generator=generator) < 0.5] = 0
        lam[pieces.norm(dim=1) < 0.1] = 0  # too weak for the sign of k to be known
        k = pieces if along else torch.randn(pieces.shape, generator=generator, dtype=torch.float64)
        row = (lam[:, None] * k / k.norm(dim=1, keepdim=True)).flatten()
        directions[site], rows[site], magnitudes[site] = u, row, lam
        with torch.no_grad():
            for p in module.projections:
                change = strength * torch.outer(u.float(), row[p.columns].float())
                p.weight.copy_((p.weight.float() + change).to(p.dtype))
    model.network.save_pretrained(edited)
    return directions, rows, magnitudes


def changed_copy(base: Path, copy: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of a one-file checkpoint with its tensors changed in place."""
    shutil.copytree(base, copy)
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy
