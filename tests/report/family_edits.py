"""Edits of tiny models of every family, with λ by hand: what a report of them must show can be counted."""

from collections.abc import Mapping
from typing import Any

import torch

from families import tiny_model
from steer2edit.core import Site, SiteEdit, WeightEdit


def family_edit(model_type: str, magnitudes: Mapping[str, Mapping[int, float]], **metadata: Any) -> WeightEdit:
    """An edit of every site of a tiny model; λ as given by site and component, 0 elsewhere, and g = λ / 10."""
    model = tiny_model(model_type)
    sites = {}
    for site, module in model.sites.items():
        lam = torch.zeros(module.component_count)
        for index, value in magnitudes.get(str(site), {}).items():
            lam[index] = value
        row = lam.repeat_interleave(module.component_width) * module.component_width**-0.5
        u = torch.nn.functional.one_hot(torch.tensor(0), module.shape[0]).float()
        sites[site] = SiteEdit(u, row, lam, lam / 10, module.sizes)
    assert set(magnitudes) <= {str(site) for site in sites}
    return WeightEdit(
        sites, {"left_out": list(model.structure.left_out), **metadata} if model.structure.left_out else metadata
    )


def only(edit: WeightEdit, *blocks: str) -> WeightEdit:
    """The same without the other blocks."""
    return WeightEdit({s: e for s, e in edit.sites.items() if s.block in blocks}, edit.metadata)


# deepseek_v3: layer 0 is dense (48 neurons); layers 1 and 2 have 4 experts of 24 neurons and a shared one of 24
DEEPSEEK = {
    "L0.mlp": {31: 0.5},
    "L1.mlp": {0: 1.0, 23: -0.25, 24: -2.0, 96: 0.75},  # E0.N0, E0.N23, E1.N0, shared.N0
    "L2.mlp": {95: 3.0, 119: 0.5},  # E3.N23, shared.N23
    "L2.attn": {1: 1.5},
}
LEFT_OUT = {"min_tokens": 32, "sites": {"L1.mlp": {"E2": 7, "E3": 0}, "L2.mlp": {"E0": 1}}}
MLP_1 = Site(1, "mlp")
