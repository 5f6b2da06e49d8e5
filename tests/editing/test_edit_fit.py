"""Vectors and edits that do not belong to a model: refused, with what differs and what to do, and nothing changed."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from edit_models import all_sites, hook_count, logits, only, random_vectors, relative, weight_bytes

from families import tiny_model
from steer2edit.core import ClassMeans, Site, SiteMeans, SteeringVectors, WeightEdit
from steer2edit.editing import convert, edited, merged
from steer2edit.errors import MismatchError
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import LanguageModel

CONFIGURATION = Hyperparameters(0.2, 0.2, 0.2)
Use = Callable[[LanguageModel, WeightEdit], AbstractContextManager[None]]


@pytest.fixture
def model() -> LanguageModel:
    return tiny_model("llama")


class TestVectors:
    def test_of_other_weights(self, model: LanguageModel) -> None:
        other = tiny_model("llama", seed=1)
        vectors = random_vectors(other)
        with pytest.raises(MismatchError) as caught:
            convert(model, vectors, CONFIGURATION)
        message = str(caught.value)
        assert f"these vectors were made on 'tiny-llama' (fingerprint {other.fingerprint[:12]})" in message
        assert f"has fingerprint {model.fingerprint[:12]}: other weights, or already edited ones" in message
        assert "--allow-mismatch (allow_mismatch=True)" in message
        edit = convert(model, vectors, CONFIGURATION, allow_mismatch=True)
        assert edit.metadata["model"]["fingerprint"] == model.fingerprint
        with pytest.raises(MismatchError, match="these vectors were made on"):
            model.require_fit(vectors)
        model.require_fit(vectors, allow_mismatch=True)

    def test_of_the_same_model_after_an_edit(self, model: LanguageModel) -> None:
        vectors = random_vectors(model)
        edit = convert(model, vectors, CONFIGURATION)
        with merged(model, edit):
            already_edited = LanguageModel(model.network, name="edited")
            with pytest.raises(MismatchError, match="already edited"):
                convert(already_edited, vectors, CONFIGURATION)

    def test_of_unknown_origin(self, model: LanguageModel) -> None:
        for metadata in ({}, {"model": None}, {"model": {"name": "somewhere"}}):
            convert(model, SteeringVectors(random_vectors(model).sites, metadata), CONFIGURATION)

    @pytest.mark.parametrize("changes", [{"hidden_size": 64}, {"intermediate_size": 56}, {"head_dim": 12}])
    def test_of_another_shape(self, model: LanguageModel, changes: dict[str, int]) -> None:
        other = tiny_model("llama", **changes)
        vectors = random_vectors(other)
        site = next(s for s in other.sites if other.sites[s].shape != model.sites[s].shape)
        shapes = [list(m.sites[site].shape) for m in (other, model)]
        with pytest.raises(MismatchError) as caught:
            convert(model, vectors, CONFIGURATION, allow_mismatch=True)
        assert str(caught.value) == (
            f"{site}: these vectors are for a weight of shape {shapes[0]}, but 'tiny-llama' has {shapes[1]}. "
            "Use the model that they were made for."
        )

    def test_with_only_outputs_of_another_shape(self, model: LanguageModel) -> None:
        vectors = SteeringVectors.from_mapping({site: torch.ones(64) for site in model.sites})
        with pytest.raises(MismatchError, match=r"L0\.attn: .* outputs of 64 entries, but 'tiny-llama' has \[32, 32\]"):
            convert(model, vectors, CONFIGURATION)

    def test_of_a_deeper_model(self, model: LanguageModel) -> None:
        vectors = random_vectors(tiny_model("llama", num_hidden_layers=4))
        with pytest.raises(
            MismatchError,
            match=r"L3\.attn: these vectors are for .*, but 'tiny-llama' has no such site\. Use the model",
        ):
            convert(model, vectors, CONFIGURATION, allow_mismatch=True, allow_missing=True)

    def test_with_missing_layers(self, model: LanguageModel) -> None:
        vectors = only(random_vectors(model), *all_sites(2))
        with pytest.raises(MismatchError) as caught:
            convert(model, vectors, CONFIGURATION)
        assert str(caught.value) == (
            "these vectors lack 2 of the 6 sites of 'tiny-llama': L2.attn, L2.mlp. Extract all layers, or pass "
            "--allow-missing (allow_missing=True) to leave those sites as they are."
        )
        assert list(convert(model, vectors, CONFIGURATION, allow_missing=True).sites) == all_sites(2)
        model.require_fit(vectors)  # steering some layers is nothing unusual

    def test_with_many_missing_layers_names_the_first(self) -> None:
        model = tiny_model("llama", num_hidden_layers=8)
        with pytest.raises(MismatchError, match=r"lack 15 of the 16 sites .*: L0\.mlp, .*, L3\.attn, \.\.\.\. Extract"):
            convert(model, only(random_vectors(model), Site(0, "attn")), CONFIGURATION)

    def test_without_input_means(self, model: LanguageModel) -> None:
        vectors = SteeringVectors.from_mapping({site: torch.ones(32) for site in model.sites})
        with pytest.raises(MismatchError) as caught:
            convert(model, vectors, CONFIGURATION)
        message = str(caught.value)
        assert "no input means for 6 sites (L0.attn, ...)" in message
        assert "--contrast BEHAVIOUR|FOLDER|FILE (contrast=...)" in message

    def test_without_some_input_means(self, model: LanguageModel) -> None:
        vectors = random_vectors(model)
        site = Site(1, "mlp")
        sites = {**vectors.sites, site: SiteMeans(vectors.sites[site].output)}
        with pytest.raises(MismatchError, match=r"no input means for 1 sites \(L1\.mlp"):
            convert(model, SteeringVectors(sites), CONFIGURATION)

    def test_with_input_means_of_another_width(self, model: LanguageModel) -> None:
        vectors = random_vectors(model)
        site = Site(1, "mlp")
        wrong = SiteMeans(vectors.sites[site].output, ClassMeans(torch.ones(40), torch.ones(40)))
        with pytest.raises(MismatchError, match=r"L1\.mlp: .* shape \[32, 40\], but 'tiny-llama' has \[32, 48\]"):
            convert(model, SteeringVectors({**vectors.sites, site: wrong}), CONFIGURATION)


@pytest.mark.parametrize("use", [edited, merged], ids=["edited", "merged"])
class TestEdits:
    def test_of_other_weights(self, model: LanguageModel, use: Use) -> None:
        other = tiny_model("llama", seed=1)
        edit = convert(other, random_vectors(other), CONFIGURATION)
        before = weight_bytes(model.network)
        with pytest.raises(MismatchError) as caught, use(model, edit):
            raise AssertionError("not reached")
        assert "these edits were made on 'tiny-llama'" in str(caught.value)
        assert "--allow-mismatch (allow_mismatch=True)" in str(caught.value)
        assert weight_bytes(model.network) == before
        assert hook_count(model.network) == 0
        base = logits(model)
        with use(model, edit, allow_mismatch=True):
            assert relative(logits(model), base) > 0.01
        assert torch.equal(logits(model), base)

    def test_of_another_shape(self, model: LanguageModel, use: Use) -> None:
        other = tiny_model("llama", intermediate_size=56)
        edit = convert(other, random_vectors(other), CONFIGURATION)
        before = weight_bytes(model.network)
        message = r"L0\.mlp: these edits are for a weight of shape \[32, 56\], but 'tiny-llama' has \[32, 48\]"
        with pytest.raises(MismatchError, match=message), use(model, edit, allow_mismatch=True):
            raise AssertionError("not reached")
        assert weight_bytes(model.network) == before

    def test_of_a_deeper_model(self, model: LanguageModel, use: Use) -> None:
        other = tiny_model("llama", num_hidden_layers=4)
        edit = convert(other, random_vectors(other), CONFIGURATION)
        with (
            pytest.raises(MismatchError, match=r"L3\.attn: these edits are for .*, but 'tiny-llama' has no such site"),
            use(model, edit, allow_mismatch=True),
        ):
            raise AssertionError("not reached")
        assert hook_count(model.network) == 0

    def test_of_the_same_weights_under_another_name(self, model: LanguageModel, use: Use) -> None:
        edit = convert(model, random_vectors(model), CONFIGURATION)
        with use(LanguageModel(model.network, name="a copy"), edit):
            pass

    def test_of_some_sites(self, model: LanguageModel, use: Use) -> None:
        edit = convert(model, only(random_vectors(model), Site(1, "mlp")), CONFIGURATION, allow_missing=True)
        base = logits(model)
        with use(model, edit):
            assert relative(logits(model), base) > 0.001
