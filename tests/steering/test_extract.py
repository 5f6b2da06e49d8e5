"""Extraction against the slow way: every activation of every response kept, means in float64."""

import gc
import importlib
import weakref
from collections.abc import Sequence

import pytest
import torch
from planting import planted, random_contrast

from naive_capture import Means, activations, class_mean, naive_means
from steer2edit.core import ClassMeans, Site, SiteMeans, SteeringVectors
from steer2edit.errors import DataError, InvalidValueError, MismatchError
from steer2edit.models import SPAN_RULE, LanguageModel, encode_responses
from steer2edit.steering.contrast import Contrast, ContrastSet
from steer2edit.steering.examples import prompt_digests
from steer2edit.steering.extract import extract, measure_inputs
from tiny_chat import tiny_chat_model

FAMILIES = ["llama", "gemma2", "gpt2", "starcoder2", "falcon"]  # post-norms, Conv1D, biases, parallel residual
CONTRAST = ContrastSet(
    "by hand",
    {
        "train": Contrast(
            (("one", "I cannot do that."), ("two", "No."), ("three", "I'm sorry, but I can't help with that at all.")),
            (("one", "Sure! Here is what I can do:\n\n  - tell you the time"), ("four", "Yes")),
        ),
        "validation": Contrast((("five", "No, sorry."), ("six", "I can't.")), (("five", "Yes, mix the flour."),)),
        "held_out": Contrast((("seven", "never looked at"),), ()),
    },
    {"generated": 0},
)


def naive(model: LanguageModel, pairs: Sequence[tuple[str, str]]) -> tuple[list[Means], list[Means]]:
    """(inputs, outputs) of every response."""
    means = [naive_means(model, response) for response in encode_responses(model, pairs)]
    return [inputs for inputs, _ in means], [outputs for _, outputs in means]


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_means_equal_the_naive_reference(family: str, batch_tokens: int) -> None:
    model = tiny_chat_model(family)
    vectors = extract(model, CONTRAST, batch_tokens=batch_tokens)
    inputs_of, outputs_of = {}, {}
    for label, pairs in (("positive", CONTRAST.train.positive), ("negative", CONTRAST.train.negative)):
        inputs_of[label], outputs_of[label] = naive(model, pairs)
    assert list(vectors.sites) == list(model.sites)
    for site, means in vectors.sites.items():
        assert means.input is not None
        for label in ("positive", "negative"):
            found_input, found_output = getattr(means.input, label), getattr(means.output, label)
            assert found_input.dtype == found_output.dtype == torch.float32
            assert relative(found_input, class_mean(inputs_of[label], site)) < 1e-5
            assert relative(found_output, class_mean(outputs_of[label], site)) < 1e-5
        v = class_mean(outputs_of["positive"], site) - class_mean(outputs_of["negative"], site)
        assert relative(means.steering_vector, v) < 1e-4
        mu = (class_mean(inputs_of["positive"], site) + class_mean(inputs_of["negative"], site)) / 2
        assert relative(means.input.midpoint, mu) < 1e-5


def test_every_response_weighs_the_same() -> None:
    model = tiny_chat_model()
    vectors = extract(model, CONTRAST)
    encoded = encode_responses(model, CONTRAST.train.positive)
    assert len({len(response.span) for response in encoded}) == 3  # their lengths differ
    site = Site(1, "mlp")
    tokens = torch.cat([activations(model, r.ids)[0][site][r.start - 1 : len(r.ids) - 1] for r in encoded])
    by_token = tokens.double().mean(dim=0)
    by_response = class_mean([naive_means(model, r)[0] for r in encoded], site)
    found = vectors.sites[site].input.positive
    assert relative(found, by_response) < 1e-5
    assert relative(found, by_token) > 1e-2


def test_split_halves_are_the_even_and_the_odd_responses() -> None:
    model = tiny_chat_model("gpt2")
    contrast = random_contrast(train=7, validation=3)
    diagnosis = extract(model, contrast, batch_tokens=120).diagnosis
    assert diagnosis is not None
    _, positive = naive(model, contrast.train.positive)
    _, negative = naive(model, contrast.train.negative)
    for site in model.sites:
        even, odd = (class_mean(positive[h::2], site) - class_mean(negative[h::2], site) for h in (0, 1))
        found = diagnosis["sites"][str(site)]["split_half_cosine"]
        assert found == pytest.approx(cosine(even, odd), abs=1e-4)


def test_held_out_separability() -> None:
    model = tiny_chat_model("gpt2")
    contrast = random_contrast(train=6, validation=5)
    vectors = extract(model, contrast)
    assert vectors.diagnosis is not None
    _, positive = naive(model, contrast.validation.positive)
    _, negative = naive(model, contrast.validation.negative)
    values = set()
    for site, means in vectors.sites.items():
        v = means.steering_vector.double()
        ahead = sum(float(p[site] @ v > n[site] @ v) for p in positive for n in negative)
        found = vectors.diagnosis["sites"][str(site)]
        assert found["auroc"] == pytest.approx(ahead / 25)
        assert found["auroc_low"] < found["auroc"] < found["auroc_high"] or found["auroc"] in (0, 1)
        assert found["norm"] == pytest.approx(float(v.norm()), rel=1e-5)
        values.add(found["auroc"])
    assert len(values) > 1


def test_a_planted_direction_is_recovered() -> None:
    model = tiny_chat_model()
    contrast = random_contrast(train=24, validation=8)
    site = Site(2, "mlp")
    direction = torch.randn(48, generator=torch.Generator().manual_seed(3))
    with planted(model, contrast, site, direction):
        means = extract(model, contrast).sites[site]
    assert means.input is not None
    assert cosine(means.input.difference, direction) > 0.99
    assert cosine(means.steering_vector, model.sites[site].weight @ direction) > 0.99
    unplanted = extract(model, contrast).sites[site]
    assert cosine(unplanted.steering_vector, model.sites[site].weight @ direction) < 0.9


def test_a_half_precision_model_gives_float32_means() -> None:
    model = tiny_chat_model()
    model.network.to(torch.bfloat16)
    vectors = extract(model, CONTRAST, batch_tokens=1)  # the same forward passes as the reference
    inputs, _ = naive(model, CONTRAST.train.positive)
    for site, means in vectors.sites.items():
        assert means.input is not None
        assert means.input.positive.dtype == means.output.positive.dtype == torch.float32
        assert relative(means.input.positive, class_mean(inputs, site)) < 1e-5
        exact = model.sites[site].weight.double() @ class_mean(inputs, site)
        assert relative(means.output.positive, exact) < 1e-5
    assert vectors.metadata["dtype"] == "bfloat16"


def test_metadata() -> None:
    model = tiny_chat_model()
    vectors = extract(model, CONTRAST)
    assert vectors.metadata == {
        "model": model.describe(),
        "contrast": {
            "name": "by hand",
            "counts": {
                "train": {"positive": 3, "negative": 2},
                "validation": {"positive": 2, "negative": 1},
                "held_out": {"positive": 1, "negative": 0},
            },
            "generated": 0,
        },
        "prompts": prompt_digests([*(p for p, _ in CONTRAST.train.positive), *(p for p, _ in CONTRAST.train.negative)]),
        "span": SPAN_RULE,
        "dtype": "float32",
    }
    assert vectors.diagnosis is not None
    assert vectors.diagnosis["counts"] == {
        "train": {"positive": 3, "negative": 2},
        "held_out": {"positive": 2, "negative": 1},
    }


class TestMemory:
    """Only running sums are kept: what is alive does not grow with the number of responses."""

    def alive_at_the_end(self, monkeypatch: pytest.MonkeyPatch, count: int) -> tuple[int, int]:
        """(most batches' means alive at once, numbers held by all tensors when the last batch is done)."""
        module = importlib.import_module("steer2edit.steering.extract")  # the package exports a function of that name
        original = module.span_means
        seen: list[weakref.ref] = []
        alive = []

        def watched(model, responses, **kwargs):
            for batch in original(model, responses, **kwargs):
                seen.extend(weakref.ref(means.input) for means in batch.sites.values())
                yield batch
                del batch
                alive.append(sum(ref() is not None for ref in seen))
            if "negative" in kwargs["description"]:
                gc.collect()
                held.extend(t.numel() for t in gc.get_objects() if issubclass(type(t), torch.Tensor))

        held: list[int] = []
        model = tiny_chat_model()
        with monkeypatch.context() as patch:
            patch.setattr(module, "span_means", watched)
            extract(model, random_contrast(count, 1), batch_tokens=1)
        assert len(seen) == 2 * count * len(model.sites)
        return max(alive), sum(held)

    def test_flat(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gc.freeze()  # only what is made from here on is looked through
        try:
            few, held_few = self.alive_at_the_end(monkeypatch, 4)
            many, held_many = self.alive_at_the_end(monkeypatch, 32)
        finally:
            gc.unfreeze()
        assert few == many <= 6  # at most the batch at hand
        assert held_many <= held_few + 1000  # one response's means are 240 numbers; 56 more would be 13 440


class TestMeasuringInputs:
    def vectors(self, model: LanguageModel) -> SteeringVectors:
        generator = torch.Generator().manual_seed(0)
        return SteeringVectors.from_mapping(
            {s: torch.randn(p.shape[0], generator=generator) for s, p in model.sites.items() if s.layer}, made_by="hand"
        )

    def test_they_are_those_of_an_extraction(self) -> None:
        model = tiny_chat_model()
        given = self.vectors(model)
        measured, extracted = measure_inputs(model, given, CONTRAST), extract(model, CONTRAST)
        assert not given.has_input_means
        assert measured.has_input_means
        assert list(measured.sites) == list(given.sites)
        for site, means in measured.sites.items():
            wanted = extracted.sites[site].input
            assert means.input is not None
            assert wanted is not None
            assert torch.equal(means.input.positive, wanted.positive)
            assert torch.equal(means.input.negative, wanted.negative)
            assert torch.equal(means.steering_vector, given.sites[site].steering_vector)
        assert measured.metadata["made_by"] == "hand"
        assert measured.metadata["input_means_from"] == CONTRAST.describe()

    def test_known_ones_stay(self) -> None:
        model = tiny_chat_model()
        site = Site(0, "mlp")
        known = ClassMeans(torch.ones(48), torch.zeros(48))
        vectors = SteeringVectors({site: SiteMeans(ClassMeans(torch.ones(32), torch.zeros(32)), known)})
        assert measure_inputs(model, vectors, CONTRAST).sites[site].input is known


class TestBadInput:
    def test_empty_response(self) -> None:
        contrast = ContrastSet("mine", {"train": Contrast((("a", "x"), ("b", " ")), (("a", "y"),))}, {})
        with pytest.raises(DataError, match="the response to 'b' is empty"):
            extract(tiny_chat_model(), contrast)

    def test_longer_than_the_context(self) -> None:
        model = tiny_chat_model(max_position_embeddings=40)
        contrast = ContrastSet("mine", {"train": Contrast((("a", "z" * 60),), (("a", "y"),))}, {})
        with pytest.raises(DataError, match="context of 'tiny-llama' is 40"):
            extract(model, contrast)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_activations_that_are_not_finite(self, value: float) -> None:
        model = tiny_chat_model()
        with torch.no_grad():
            model.network.model.layers[1].mlp.gate_proj.weight[0, 0] = value
        with pytest.raises(
            InvalidValueError, match=r"L1\.mlp: the positive (in|out)put mean has \d+ non-finite entries"
        ):
            extract(model, CONTRAST)

    def test_vectors_of_another_model(self) -> None:
        vectors = SteeringVectors.from_mapping({"L9.attn": torch.ones(32)})
        with pytest.raises(MismatchError, match=r"L9\.attn"):
            measure_inputs(tiny_chat_model(), vectors, CONTRAST)
