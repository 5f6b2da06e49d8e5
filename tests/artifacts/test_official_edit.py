"""Edits of the official Steer2Edit code: the same ΔW and logits; files that are damaged or for other models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from families import tiny_model
from steer2edit.artifacts import load_edit, load_official_edit, load_vectors, save_edit
from steer2edit.core import ClassMeans, Site, SiteMeans, SteeringVectors, WeightEdit
from steer2edit.editing import convert, edited, merged
from steer2edit.errors import ArtifactError, MismatchError
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import LanguageModel

IDS = torch.arange(3, 15).view(2, 6)
RHO_ATTN, RHO_MLP, ALPHA = 0.25, 0.4, 0.3
BUDGET = Hyperparameters(RHO_ATTN, RHO_MLP, ALPHA)


@pytest.fixture
def model() -> LanguageModel:
    return tiny_model("llama")


def vectors(model: LanguageModel) -> SteeringVectors:
    generator = torch.Generator().manual_seed(5)

    def pair(n: int) -> ClassMeans:
        return ClassMeans(torch.randn(n, generator=generator), torch.randn(n, generator=generator))

    return SteeringVectors({site: SiteMeans(pair(m.shape[0]), pair(m.shape[1])) for site, m in model.sites.items()})


def official_factors(
    model: LanguageModel, vectors: SteeringVectors, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """The published procedure on its own: one head and one neuron at a time, by Theorems 3.1 to 3.3."""
    edits: dict[str, Any] = {
        "attn": {},
        "mlp": {},
        "meta": {"vhat_attn": {}, "vhat_mlp": {}, "rho_attn": RHO_ATTN, "rho_mlp": RHO_MLP, "alpha": ALPHA},
    }
    for site, means in vectors.sites.items():
        v, mu, W = means.steering_vector, means.input.midpoint, model.sites[site].weight
        vhat = v / v.norm()
        edits["meta"][f"vhat_{site.block}"][site.layer] = vhat.to(dtype)
        width = model.sites[site].component_width
        rho = RHO_ATTN if site.block == "attn" else RHO_MLP
        for index in range(W.shape[1] // width):
            own = slice(index * width, (index + 1) * width)
            g = torch.nn.functional.cosine_similarity(vhat, W[:, own] @ mu[own], dim=0).item()
            excess = max(abs(g) - rho * ALPHA, 0) / (rho * (1 - ALPHA))
            k = W[:, own].T @ vhat
            if not excess:
                continue
            magnitude = excess if g > 0 else -excess
            if site.block == "attn":
                edits["attn"][site.layer, index] = {"lambda": magnitude, "k_hat": (k / k.norm()).to(dtype)}
            else:
                edits["mlp"][site.layer, index] = {"lambda": magnitude * (1.0 if k.item() > 0 else -1.0)}
    return edits


def official_logits(model: LanguageModel, edits: dict[str, Any]) -> torch.Tensor:
    """What the official code does to a model: ΔW of each head and neuron added to its columns."""
    layers = model.network.model.layers
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    with torch.inference_mode():
        for (layer, head), factor in edits["attn"].items():
            k = factor["k_hat"].float()
            delta = factor["lambda"] * torch.outer(edits["meta"]["vhat_attn"][layer].float(), k)
            layers[layer].self_attn.o_proj.weight[:, head * len(k) : (head + 1) * len(k)] += delta
        for (layer, neuron), factor in edits["mlp"].items():
            layers[layer].mlp.down_proj.weight[:, neuron] += factor["lambda"] * edits["meta"]["vhat_mlp"][layer].float()
        logits = model.network(input_ids=IDS).logits
        model.network.load_state_dict(before)
    return logits


def written(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def by_official(model: LanguageModel, tmp_path: Path, **options: Any) -> tuple[dict[str, Any], WeightEdit]:
    content = official_factors(model, vectors(model), **options)
    return content, load_official_edit(written(tmp_path / "rank1.pt", content), model)


def test_it_is_the_edit_that_we_convert_from_the_same_vectors(model: LanguageModel, tmp_path: Path) -> None:
    content, read = by_official(model, tmp_path)
    own = convert(model, vectors(model), BUDGET)
    assert {site for site, e in own.sites.items() if e.magnitude.any()} == set(read.sites)
    assert {block: len(content[block]) for block in ("attn", "mlp")} == {
        block: sum(component.site.block == block for component, _, _ in own.components()) for block in ("attn", "mlp")
    }
    for site, edit in read.sites.items():
        torch.testing.assert_close(edit.dense(), own.sites[site].dense(), atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(edit.magnitude, own.sites[site].magnitude, atol=1e-5, rtol=1e-5)
        touched = edit.magnitude != 0
        torch.testing.assert_close(edit.importance[touched], own.sites[site].importance[touched], atol=1e-5, rtol=1e-5)
        assert not edit.importance[~touched].any()
    assert read.metadata["hyperparameters"] == BUDGET.to_json()
    assert read.metadata["model"] == model.describe()
    assert read.metadata["file"] == "rank1.pt"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hook_and_merged_weights_equal_the_official_code(
    model: LanguageModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    content, read = by_official(model, tmp_path, dtype=dtype)
    expected = official_logits(model, content)
    with torch.inference_mode():
        base = model.network(input_ids=IDS).logits
        with edited(model, read):
            hooked = model.network(input_ids=IDS).logits
        with merged(model, read):
            in_weights = model.network(input_ids=IDS).logits
    assert (expected - base).abs().max() > 0.05
    torch.testing.assert_close(hooked, expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(in_weights, expected, atol=2e-5, rtol=1e-5)


def test_it_becomes_an_edit_directory(model: LanguageModel, tmp_path: Path) -> None:
    _, read = by_official(model, tmp_path)
    save_edit(model, read, tmp_path / "edit")
    again = load_edit(tmp_path / "edit")
    assert all(torch.equal(again.sites[site].row, edit.row) for site, edit in read.sites.items())
    assert again.metadata == read.metadata


def test_a_block_that_is_off(model: LanguageModel, tmp_path: Path) -> None:
    content = official_factors(model, vectors(model))
    content["mlp"], content["meta"]["rho_mlp"] = {}, -1.0
    read = load_official_edit(written(tmp_path / "e.pt", content), model)
    assert {site.block for site in read.sites} == {"attn"}
    assert read.metadata["hyperparameters"]["rho_mlp"] is None


def test_the_folded_sign_by_hand(model: LanguageModel, tmp_path: Path) -> None:
    """Column 5 writes against u, so k = −1: λ_file = −0.5 means λ = +0.5 and a = λ k = −0.5."""
    u = torch.zeros(32)
    u[0] = 1
    model.sites[Site(1, "mlp")].weight[0, 5] = -0.2
    model.sites[Site(1, "mlp")].weight[0, 6] = 0.2
    meta = {"vhat_attn": {}, "vhat_mlp": {1: u}, "rho_attn": -1.0, "rho_mlp": 0.5, "alpha": 0.5}
    content = {"attn": {}, "mlp": {(1, 5): {"lambda": -0.5}, (1, 6): {"lambda": -0.25}}, "meta": meta}
    edit = load_official_edit(written(tmp_path / "e.pt", content), model).sites[Site(1, "mlp")]
    assert edit.row[[4, 5, 6]].tolist() == [0, -0.5, -0.25]
    assert edit.magnitude[[4, 5, 6]].tolist() == [0, 0.5, -0.25]
    assert edit.importance[[4, 5, 6]].tolist() == [0, 0.375, -0.3125]  # |g| = |λ| ρ(1 − α) + ρα = |λ|/4 + 1/4
    assert list(load_official_edit(tmp_path / "e.pt", model).sites) == [Site(1, "mlp")]


def first(entries: dict[Any, Any]) -> dict[str, Any]:
    return next(iter(entries.values()))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: c.pop("meta"), ArtifactError, r"no edit of the official code .* keys \['attn', 'mlp'\]"),
        (lambda c: c.update(meta=3), ArtifactError, "meta must be a dictionary, got int"),
        (lambda c: c["meta"].pop("alpha"), ArtifactError, "no alpha"),
        (lambda c: c["meta"].update(alpha="0.5"), ArtifactError, "meta.alpha must be a finite number"),
        (lambda c: c["meta"].update(alpha=1.0), ArtifactError, r"alpha must be in \[0, 1\)"),
        (
            lambda c: c["meta"].update(rho_attn=float("nan")),
            ArtifactError,
            "rho_attn must be a finite number, got nan",
        ),
        (lambda c: c["meta"].update(rho_attn=-1.0), ArtifactError, "factors of L0.attn, but rho_attn is off"),
        (lambda c: c["meta"].update(vhat_attn={}), ArtifactError, r"vhat_attn\[0\] must be a vector .* got NoneType"),
        (lambda c: c["meta"].update(vhat_attn=[1]), ArtifactError, "meta.vhat_attn must be a dictionary"),
        (lambda c: c["meta"]["vhat_mlp"][1].mul_(2), ArtifactError, r"vhat_mlp\[1\] must be of length 1, but .* 2"),
        (lambda c: c["meta"]["vhat_mlp"][1].fill_(float("nan")), ArtifactError, "length nan"),
        (lambda c: c.update(attn={}, mlp={}), ArtifactError, "at least one site"),
        (lambda c: c.update(attn=[]), ArtifactError, "attn must be a dictionary, got list"),
        (lambda c: c["attn"].update({(0, 1, 2): {}}), ArtifactError, r"attn: \(0, 1, 2\) is not a pair"),
        (lambda c: c["attn"].update({"0,1": {}}), ArtifactError, "'0,1' is not a pair"),
        (lambda c: c["mlp"].update({(0, -1): {"lambda": 0.5}}), ArtifactError, r"\(0, -1\) is not a pair"),
        (lambda c: c["mlp"].update({(True, 1): {"lambda": 0.5}}), ArtifactError, r"\(True, 1\) is not a pair"),
        (lambda c: c["mlp"].update({(0, 1): 0.5}), ArtifactError, r"mlp\[0, 1\] must be a dictionary, got float"),
        (lambda c: first(c["mlp"]).update({"lambda": float("nan")}), ArtifactError, "lambda must be a finite number"),
        (lambda c: first(c["mlp"]).pop("lambda"), ArtifactError, "lambda must be a finite number, got None"),
        (lambda c: first(c["attn"]).pop("k_hat"), ArtifactError, r"k_hat must be a vector .* got NoneType"),
        (lambda c: first(c["attn"]).update(k_hat=torch.ones(1, 8)), ArtifactError, r"k_hat must .* shape \[1, 8\]"),
        (lambda c: first(c["attn"]).update(k_hat=torch.eye(3)[0]), MismatchError, "4 components of 8 columns"),
        (lambda c: c["mlp"].update({(1, 48): {"lambda": 0.5}}), MismatchError, r"mlp\[1, 48\]: .* 48 components"),
        (lambda c: c["attn"].update({(0, 4): first(c["attn"])}), MismatchError, r"attn\[0, 4\]: .* 4 components"),
        (
            lambda c: (c["mlp"].update({(3, 0): {"lambda": 0.5}}), c["meta"]["vhat_mlp"].update({3: torch.eye(32)[0]})),
            MismatchError,
            "no such site",
        ),
        (lambda c: c["meta"]["vhat_mlp"].update({0: torch.eye(31)[0]}), MismatchError, "31 outputs, but .* with 32"),
    ],
)
def test_damaged_files_and_other_models(
    model: LanguageModel, tmp_path: Path, change: Callable[[Any], object], error: type[Exception], message: str
) -> None:
    content = official_factors(model, vectors(model))
    change(content)
    with pytest.raises(error, match=message):
        load_official_edit(written(tmp_path / "e.pt", content), model)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_code_in_the_pickle_does_not_run(model: LanguageModel, tmp_path: Path) -> None:
    content = official_factors(model, vectors(model)) | {"x": Payload(tmp_path / "ran")}
    with pytest.raises(ArtifactError, match="pickled Python objects"):
        load_official_edit(written(tmp_path / "e.pt", content), model)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_no_edit(model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no file"):
        load_official_edit(tmp_path / "e.pt", model)
    with pytest.raises(ArtifactError, match="holds list"):
        load_official_edit(written(tmp_path / "e.pt", [1]), model)
    with pytest.raises(ArtifactError, match=r"keys \['L0.attn'\]"):
        load_official_edit(written(tmp_path / "e.pt", {"L0.attn": torch.ones(2)}), model)


def test_an_edit_given_as_vectors_names_the_command(model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="steer2edit import-edit"):
        load_vectors(written(tmp_path / "e.pt", official_factors(model, vectors(model))))


def test_mixtures_of_experts_are_refused(tmp_path: Path) -> None:
    """The official code numbers the neurons of one matrix; an mlp site with several would take them for its own."""
    mixture = tiny_model("qwen3_moe")
    site = next(site for site, module in mixture.sites.items() if len(module.projections) > 1)
    meta = {"vhat_mlp": {site.layer: torch.eye(32)[0]}, "rho_attn": -1.0, "rho_mlp": 0.5, "alpha": 0.5}
    content = {"attn": {}, "mlp": {(site.layer, 0): {"lambda": 0.5}}, "meta": meta}
    with pytest.raises(MismatchError, match="for one matrix"):
        load_official_edit(written(tmp_path / "e.pt", content), mixture)
