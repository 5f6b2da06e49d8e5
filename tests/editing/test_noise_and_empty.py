"""Vectors that are noise are refused unless forced, block by block; an edit that changes nothing is an error."""

from dataclasses import replace

import pytest
import torch
from edit_models import random_vectors

from families import tiny_model
from steer2edit.artifacts import load_edit, save_edit
from steer2edit.artifacts.left_out import LeftOut
from steer2edit.core import Site, SteeringVectors
from steer2edit.editing import compute_factors, convert
from steer2edit.errors import InvalidValueError, NoiseError
from steer2edit.method.hyperparameters import Hyperparameters, Rules
from steer2edit.models import LanguageModel

BOTH = Hyperparameters(0.1, 0.1, 0.1)
ATTN = {Site(layer, "attn") for layer in range(3)}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model("llama")


def judged(model: LanguageModel, noisy: set[Site]) -> SteeringVectors:
    vectors = random_vectors(model)
    sites = {str(site): {"noise": site in noisy} for site in vectors.sites}
    return replace(vectors, diagnosis={"summary": "as said", "sites": sites})


def test_all_noise_is_refused_before_a_factor_is_computed(model: LanguageModel) -> None:
    vectors = judged(model, set(model.sites))
    with pytest.raises(NoiseError, match=r"none of the 3 attn sites \(L0.attn, L1.attn, L2.attn\)"):
        compute_factors(model, vectors)
    with pytest.raises(NoiseError):
        convert(model, vectors, BOTH)
    edit = convert(model, vectors, BOTH, force=True)
    assert edit.metadata["noisy_sites"] == list(map(str, vectors.sites))
    plain = convert(model, replace(vectors, diagnosis=None), BOTH)
    assert all(torch.equal(plain.sites[site].row, ours.row) for site, ours in edit.sites.items())


def test_a_block_of_noise_is_refused_and_the_other_one_is_not(model: LanguageModel) -> None:
    factors = compute_factors(model, judged(model, ATTN))
    for h in (BOTH, Hyperparameters(0.1, None, 0.1)):
        with pytest.raises(NoiseError, match="leave attn out"):
            factors.edits([h])
    assert "noisy_sites" not in factors.edit(Hyperparameters(None, 0.1, 0.1)).metadata


def test_single_noisy_sites_are_edited_and_named(model: LanguageModel) -> None:
    edit = convert(model, judged(model, {Site(1, "attn"), Site(2, "mlp")}), BOTH)
    assert edit.metadata["noisy_sites"] == ["L1.attn", "L2.mlp"]
    (sentence,) = LeftOut.of(edit.metadata).sentences
    assert sentence == "Edited, although the diagnosis calls their vectors noise: L1.attn, L2.mlp (2 sites)."
    assert edit.sites[Site(1, "attn")].row.any()


def largest(model: LanguageModel, vectors: SteeringVectors, block: str) -> float:
    """Largest |g| of a block, by the definition g_i = cos(W_i μ_i, v)."""
    found = 0.0
    for site, means in vectors.sites.items():
        if site.block == block:
            module, width = model.sites[site], model.sites[site].component_width
            v, mu = means.output.difference.double(), means.input.midpoint.double()
            for i in range(0, mu.numel(), width):
                write = module.weight[:, i : i + width].double() @ mu[i : i + width]
                found = max(found, abs(float(torch.nn.functional.cosine_similarity(write, v, dim=0))))
    return found


@pytest.mark.parametrize("rule", ["elastic-net", "top-k"])
def test_an_empty_edit_says_which_rho_would_edit_something(model: LanguageModel, rule: str) -> None:
    vectors, alpha = random_vectors(model), 0.5
    factors = compute_factors(model, vectors, Rules(magnitude=rule))
    with pytest.raises(InvalidValueError, match="changes nothing") as caught:
        factors.edit(Hyperparameters(50.0, 60.0, alpha))
    message = str(caught.value)
    for block, rho in (("attn", 50), ("mlp", 60)):
        bound = float(message.split(f"(--rho-{block}) below ")[1].split()[0])
        assert largest(model, vectors, block) / alpha == pytest.approx(bound, rel=6e-3)
        assert f"above ρα = {rho * alpha:g}" in message
        wanted = {"attn": (bound * 0.9999, None), "mlp": (None, bound * 0.9999)}[block]
        assert not factors.edit(Hyperparameters(*wanted, alpha)).is_empty
    assert factors.edits([Hyperparameters(50.0, 60.0, alpha)])[0].is_empty  # a search may try it


def test_one_block_below_the_threshold_is_no_error(model: LanguageModel) -> None:
    edit = compute_factors(model, random_vectors(model)).edit(Hyperparameters(50.0, 0.1, 0.5))
    assert {component.site.block for component, _, _ in edit.components()} == {"mlp"}


def test_an_empty_edit_is_not_saved(model: LanguageModel, tmp_path) -> None:
    edit = compute_factors(model, random_vectors(model)).edit(BOTH)
    with pytest.raises(InvalidValueError, match="this edit is empty"):
        save_edit(model, edit.scaled(0.0), tmp_path / "edit")
    assert not list(tmp_path.iterdir())
    save_edit(model, edit, tmp_path / "edit")
    assert not load_edit(tmp_path / "edit").is_empty
