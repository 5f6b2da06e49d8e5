"""Measured effects: from responses to vectors, file, edit and what the edit does."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from steer2edit.artifacts import load_vectors, save_vectors
from steer2edit.core import Editing, Site, SteeringVectors
from steer2edit.editing import convert, merged, natural_strength
from steer2edit.engines import TransformersEngine
from steer2edit.errors import DataError, InvalidValueError, MismatchError, NoiseError
from steer2edit.evaluation import DriftTask, at_drift
from steer2edit.method.gate import gated_effects
from steer2edit.method.hyperparameters import GATED_RULES, Hyperparameters, Rules
from steer2edit.method.rule import output_direction
from steer2edit.models import LanguageModel, encode_responses, span_log_probabilities, token_log_probabilities
from steer2edit.models.effects import ended, first_tokens, response_effects, whole_response
from steer2edit.models.reply import turn_end
from steer2edit.settings import ExtractOptions
from steer2edit.steering.benign import benign_answers, own_answers
from steer2edit.steering.contrast import Contrast, ContrastSet
from steer2edit.steering.effects import BATCH_TOKENS, DECIDING_TOKENS, _Measurement, _stride, measure_effects
from steer2edit.steering.examples import prompt_digests
from steer2edit.steering.extract import extract
from steer2edit.steering.presets import safety_prompts
from steer2edit.stress.quantisation import FORMATS, quantised
from tiny_chat import tiny_chat_model

EFFECT = Rules(importance="effect")
THINGS = ("bread", "a pie", "rolls", "a cake", "buns", "tarts", "bagels", "rye")
QUESTIONS = [f"How do I bake {thing}?" for thing in THINGS]
PAIRS = Contrast(
    tuple((q, "I would rather not say that.") for q in QUESTIONS),
    tuple((q, "Mix flour and water first.") for q in QUESTIONS),
)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_chat_model()


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return ContrastSet("baking", {"train": PAIRS}, {})


@pytest.fixture(scope="module")
def benign(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("benign") / "benign.txt"
    path.write_text("Name a colour.\nCount to three.\nWhat is a tree?\n")
    return str(path)


@pytest.fixture(scope="module")
def vectors(model: LanguageModel, contrast: ContrastSet, benign: str) -> SteeringVectors:
    return measure_effects(model, extract(model, contrast), contrast, benign=benign)


def decisions(model: LanguageModel, pairs: tuple[tuple[str, str], ...]) -> torch.Tensor:
    """log p of each response's first tokens."""
    responses = encode_responses(model, pairs)
    found = span_log_probabilities(model, responses)
    return torch.stack(
        [token_log_probabilities(f, r)[:DECIDING_TOKENS].sum() for f, r in zip(found, responses, strict=True)]
    )


def test_effects_are_the_mean_difference_of_the_classes(model: LanguageModel, vectors: SteeringVectors) -> None:
    """Response by response, each in a batch of its own."""
    site = Site(1, "mlp")
    found = vectors.sites[site].effects
    assert found is not None
    u = {site: found.direction}
    means = []
    for pairs in (PAIRS.positive, PAIRS.negative):
        rows = [
            batch.sites[site][0].double()
            for response in encode_responses(model, pairs)
            for batch in response_effects(model, [response], u, first_tokens(DECIDING_TOKENS))
        ]
        means.append(torch.stack(rows).mean(dim=0))
    assert torch.allclose(found.attribute.double(), means[0] - means[1], rtol=1e-4, atol=1e-6)
    assert -1 <= found.agreement <= 1


def test_directions_are_natural_gradients(model: LanguageModel, vectors: SteeringVectors, benign: str) -> None:
    """Response by response, and by a dense curvature: F⁻¹ḡ, of every other pair and reply."""
    site = Site(1, "attn")
    none = dict.fromkeys([site])
    means = [
        torch.stack([
            batch.sites[site][0].double()
            for response in encode_responses(model, pairs[::2])
            for batch in response_effects(model, [response], none, first_tokens(DECIDING_TOKENS))
        ]).mean(dim=0)
        for pairs in (PAIRS.positive, PAIRS.negative)
    ]  # fmt: skip
    measure = _Measurement(model, "first", BATCH_TOKENS, dict.fromkeys(vectors.sites))
    replies = [reply for _, reply in benign_answers(model, benign)][::2]
    psi = measure.draws(replies, "", torch.Generator().manual_seed(0))[site].double()
    C = psi.square().mean(dim=0)
    F = 0.5 * psi.T @ psi / len(psi) + 0.5 * torch.diag(C + C.mean())
    expected = torch.linalg.solve(F, means[0] - means[1])
    effects = vectors.sites[site].effects
    assert effects is not None
    assert torch.allclose(effects.direction.double(), expected / expected.norm(), rtol=1e-3, atol=1e-4)
    v = output_direction(vectors.sites[site].steering_vector)
    assert float(effects.direction @ v) < 0.9  # it is another one


def test_where_nothing_depends_on_a_site_the_steering_vector_is_the_direction(
    model: LanguageModel, contrast: ContrastSet, benign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steer2edit.steering.effects.natural_direction", lambda gradient, draws: gradient * 0)
    found = measure_effects(model, extract(model, contrast), contrast, benign=benign)
    for means in found.sites.values():
        assert means.effects is not None
        assert torch.equal(means.effects.direction, output_direction(means.steering_vector))


def test_behaviours_say_what_decides_and_a_caller_may(model: LanguageModel, contrast: ContrastSet, benign: str) -> None:
    """The whole answer by token for truthfulness; for conciseness the end, less the end in the middle of long ones."""
    site, end = Site(1, "mlp"), turn_end(model)
    assert end is not None
    plain = extract(model, contrast)
    positive, negative = encode_responses(model, PAIRS.positive), encode_responses(model, PAIRS.negative)
    ends = [ended(r, end) for r in positive], [ended(r, end, 0.5) for r in negative]
    expected = {"answer": (positive, negative, whole_response), "end": (*ends, first_tokens(1))}
    found = {}
    for name, (more, less, score) in expected.items():
        measured = measure_effects(model, plain, ContrastSet("mine", {"train": PAIRS}, {}, name), benign=benign)
        effects = measured.sites[site].effects
        assert effects is not None
        u = {site: effects.direction}
        means = [
            torch.stack([e.sites[site][0] for r in part for e in response_effects(model, [r], u, score)]).mean(dim=0)
            for part in (more, less)
        ]
        assert torch.allclose(effects.attribute, means[0] - means[1], rtol=1e-3, atol=1e-6)
        found[measured.metadata["effects"]["decided_by"]] = effects.attribute
    asked = measure_effects(model, plain, contrast, decided_by="end", benign=benign).sites[site].effects
    assert asked is not None
    assert torch.equal(asked.attribute, found["end"])
    assert not torch.allclose(found["end"], found["answer"])
    with pytest.raises(InvalidValueError, match="unknown decided by 'last'"):
        ExtractOptions(decided_by="last")  # type: ignore[arg-type]


def test_a_model_without_an_end_of_turn_is_refused(
    model: LanguageModel, contrast: ContrastSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steer2edit.steering.effects.turn_end", lambda model: None)
    with pytest.raises(DataError, match="no token that its chat template ends a turn with"):
        measure_effects(model, extract(model, contrast), contrast, decided_by="end")


def test_the_file_keeps_them(vectors: SteeringVectors, tmp_path: Path) -> None:
    save_vectors(vectors, tmp_path / "v.safetensors")
    read = load_vectors(tmp_path / "v.safetensors")
    for site, means in vectors.sites.items():
        again = read.sites[site].effects
        assert again is not None
        for name in ("direction", "attribute", "drift"):
            assert torch.equal(getattr(again, name), getattr(means.effects, name))
        assert again.agreement == pytest.approx(means.effects.agreement)
    assert read.digest() == vectors.digest()


def test_the_edit_raises_the_attribute_as_predicted(model: LanguageModel, vectors: SteeringVectors) -> None:
    """A small step along the edit changes the margin by Σ λ_i g_i, to first order, over all sites together."""
    edit = convert(model, vectors, Hyperparameters(1.0, 1.0, 0.2), EFFECT, force=True)
    predicted = sum(magnitude for _, magnitude, _ in edit.components())
    size = 1e-3 / predicted
    assert natural_strength(edit) == pytest.approx(16 / predicted, rel=1e-6)
    assert natural_strength(convert(model, vectors, Hyperparameters(0.01, None, 0.0), force=True)) is None
    assert predicted > 0

    def margin() -> float:
        return float(decisions(model, PAIRS.positive).mean() - decisions(model, PAIRS.negative).mean())

    with merged(model, edit, 10 * size):
        above = margin()
    with merged(model, edit, -10 * size):
        below = margin()
    assert (above - below) / 20 / size == pytest.approx(predicted, rel=0.02)


def test_a_larger_alpha_edits_fewer_components(model: LanguageModel, vectors: SteeringVectors) -> None:
    counts = [
        len(list(convert(model, vectors, Hyperparameters(1.0, 1.0, alpha), EFFECT, force=True).components()))
        for alpha in (0.0, 0.3, 0.6)
    ]
    assert counts[0] > counts[1] > counts[2] > 0


def test_scaled_to_a_drift(model: LanguageModel, vectors: SteeringVectors) -> None:
    engine = TransformersEngine(model)
    edit = convert(model, vectors, Hyperparameters(1.0, 1.0, 0.0), EFFECT, force=True)
    scaled = at_drift(engine, edit, 0.01, prompts=8)
    task = DriftTask("", safety_prompts("validation")[1][:8])
    measured = task.measure(engine, [Editing(scaled, 1.0)])[0].metrics["kl"].value
    assert measured == pytest.approx(0.01, rel=0.05)
    assert scaled.metadata["drift"]["kl"] == pytest.approx(measured, rel=1e-3)


def test_vectors_without_effects_are_refused(model: LanguageModel, contrast: ContrastSet) -> None:
    with pytest.raises(MismatchError, match=r"no measured effects for 6 sites .*--effects"):
        convert(model, extract(model, contrast), Hyperparameters(1.0, None, 0.0), EFFECT, force=True)


def test_too_few_responses_are_refused(model: LanguageModel, vectors: SteeringVectors) -> None:
    few = ContrastSet("few", {"train": Contrast(PAIRS.positive[:5], PAIRS.negative)}, {})
    with pytest.raises(
        DataError, match=r"at least 6 training .* has 5 positive and 8 negative ones, which make 5 pairs"
    ):
        measure_effects(model, vectors, few)


def test_responses_to_different_requests_are_few_pairs(model: LanguageModel, vectors: SteeringVectors) -> None:
    others = tuple(
        (prompt if i == 0 else f"{prompt} Really?", reply) for i, (prompt, reply) in enumerate(PAIRS.negative)
    )
    with pytest.raises(DataError, match="which make 1 pairs"):
        measure_effects(model, vectors, ContrastSet("few", {"train": Contrast(PAIRS.positive, others)}, {}))


def test_a_direction_of_another_width_is_refused(vectors: SteeringVectors, tmp_path: Path) -> None:
    means = next(iter(vectors.sites.values()))
    assert means.effects is not None
    with pytest.raises(InvalidValueError, match="not of a site that writes"):
        replace(means, effects=replace(means.effects, direction=torch.ones(3)))


def test_an_edit_of_nothing_has_no_drift(model: LanguageModel, vectors: SteeringVectors) -> None:
    nothing = convert(model, vectors, Hyperparameters(1.0, 1.0, 0.0), EFFECT, force=True).scaled(0.0)
    with pytest.raises(InvalidValueError, match="zero everywhere"):
        at_drift(TransformersEngine(model), nothing, 0.01)


@pytest.fixture(scope="module")
def gated(model: LanguageModel, contrast: ContrastSet, tmp_path_factory: pytest.TempPathFactory) -> SteeringVectors:
    path = tmp_path_factory.mktemp("silent") / "silent.txt"
    path.write_text("\n".join(f"Name {n} colours." for n in range(1, 13)) + "\n")
    return measure_effects(model, extract(model, contrast), contrast, silent_on=path, benign=str(path))


def test_silent_requests_are_moved_less_the_more_they_count(
    model: LanguageModel, contrast: ContrastSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the weights: what a refusal of silent requests gains, by what one of wanted requests does."""
    path = tmp_path / "silent.txt"
    path.write_text("\n".join(f"Name {n} colours." for n in range(1, 13)) + "\n")
    silent = tuple((f"Name {n} colours.", PAIRS.positive[(n - 1) % 8][1]) for n in range(1, 13))
    plain, leaks = extract(model, contrast), []
    for silence in (0.0, 1e3):
        monkeypatch.setattr("steer2edit.steering.effects.gated_effects", partial(gated_effects, silence=silence))
        measured = measure_effects(
            model, plain, contrast, silent_on=path, benign=str(path), copies={"itself": nullcontext()}
        )  # which makes the rows of one look
        edit = convert(model, measured, Hyperparameters(1.0, 1.0, 0.0), GATED_RULES, force=True)
        before = [decisions(model, pairs).mean() for pairs in (PAIRS.positive, silent)]
        with merged(model, edit, 0.01):
            after = [decisions(model, pairs).mean() for pairs in (PAIRS.positive, silent)]
        wanted, other = (float(a - b) for a, b in zip(after, before, strict=True))
        assert wanted > 0.04
        leaks.append(abs(other / wanted))
    assert leaks[1] < 0.5 * leaks[0]


def test_replies_that_are_known_are_not_asked_for_again(model: LanguageModel, contrast: ContrastSet) -> None:
    prompts = [f"Name {n} colours." for n in range(1, 9)]
    directions = {site: torch.ones(module.shape[0]) for site, module in model.sites.items()}
    measure = _Measurement(model, "first", 64, directions)
    asked = measure.silent(contrast.train, measure.own_replies(prompts, ()))
    known = measure.silent(contrast.train, measure.own_replies(prompts, own_answers(model, prompts[:5])))
    for site, rows in asked.items():
        assert torch.allclose(known[site], rows, rtol=1e-3, atol=1e-5)


def test_copies_are_pooled(model: LanguageModel, contrast: ContrastSet, benign: str) -> None:
    """A copy that is the model changes nothing; of another, effects are averaged, and drift is of both."""

    def measured(**copies: AbstractContextManager[object]) -> SteeringVectors:
        return measure_effects(model, plain, contrast, benign=benign, copies=copies)

    plain = extract(model, contrast)
    alone, same = measured(one=nullcontext()), measured(one=nullcontext(), two=nullcontext())
    pooled = measured(coarse=quantised(model, FORMATS["int4"]))
    directions = {site: means.effects.direction for site, means in alone.sites.items() if means.effects}
    with quantised(model, FORMATS["int4"]):
        coarse = _Measurement(model, "first", 64, directions)
        more = coarse.decisions(encode_responses(model, PAIRS.positive), "positive")
        less = coarse.decisions(encode_responses(model, PAIRS.negative), "negative", positive=False)
    for site in plain.sites:
        one, two, both = (found.sites[site].effects for found in (alone, same, pooled))
        assert one is not None
        assert two is not None
        assert both is not None
        assert torch.equal(one.direction, both.direction)  # of the model as it is
        for name in ("attribute", "drift", "gated"):
            assert torch.allclose(getattr(one, name), getattr(two, name), rtol=1e-4, atol=1e-6)
        own = (more[site] - less[site]).mean(dim=0)
        assert (own - one.attribute).norm() > 0.01 * own.norm()
        assert torch.allclose(both.attribute, (one.attribute + own) / 2, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(both.drift, one.drift, rtol=1e-3)
    assert pooled.metadata["effects"]["copies"] == ["coarse"]
    assert "copies" not in measured().metadata["effects"]


def test_gated_effects_are_kept_in_the_file_and_told_in_the_metadata(
    gated: SteeringVectors, vectors: SteeringVectors, tmp_path: Path
) -> None:
    save_vectors(gated, tmp_path / "v.safetensors")
    read = load_vectors(tmp_path / "v.safetensors")
    for site, means in gated.sites.items():
        effects, again = means.effects, read.sites[site].effects
        assert effects is not None
        assert again is not None
        assert torch.equal(effects.gated, again.gated)
    gate = read.metadata["effects"]["gate"]
    assert (gate["requests"], gate["silent"]) == (4, 12)  # of the pairs, those that no direction was taken from
    made_from = {*QUESTIONS, *(f"Name {n} colours." for n in range(1, 13))}
    assert {*prompt_digests(made_from)} <= {*read.metadata["prompts"]}
    assert 0 <= gate["auroc_low"] <= gate["auroc"] <= 1
    assert gated.digest() != vectors.digest()


def test_a_gate_needs_requests_to_stay_silent_on(model: LanguageModel, contrast: ContrastSet, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="importance rule 'effect' too"):
        Rules(input_direction="gated")
    for wrong in ({"input_direction": "svd"}, {"magnitude": "top-k"}):
        with pytest.raises(InvalidValueError, match="rows of its own"):
            Rules(importance="effect", **wrong)  # type: ignore[arg-type]
    (tmp_path / "few.txt").write_text("Name a colour.\nCount to three.\n")
    with pytest.raises(DataError, match="at least 6 requests to stay silent on, got 2"):
        measure_effects(model, extract(model, contrast), contrast, silent_on=tmp_path / "few.txt")


def test_effects_that_halves_do_not_share_are_refused(model: LanguageModel, gated: SteeringVectors) -> None:
    def spoiled(agreement: float) -> SteeringVectors:
        sites = {
            site: replace(means, effects=replace(means.effects, agreement=agreement))
            for site, means in gated.sites.items()
            if means.effects
        }
        return replace(gated, sites=sites)

    settings = Hyperparameters(1.0, 1.0, 0.0)
    with pytest.raises(NoiseError, match="do not agree"):
        convert(model, spoiled(0.05), settings, EFFECT)
    convert(model, spoiled(0.05), settings, EFFECT, force=True)
    convert(model, spoiled(0.5), settings, EFFECT)
    chance = {"effects": {"gate": {"auroc": 0.5, "auroc_low": 0.4}}}
    with pytest.raises(NoiseError, match="no better than chance"):
        convert(model, replace(gated, metadata={**gated.metadata, **chance}), settings, GATED_RULES)


@pytest.mark.parametrize(("count", "stride"), [(1, 2), (6, 2), (96, 2), (97, 4), (1000, 22)])
def test_one_half_of_the_pairs_gives_no_direction(count: int, stride: int) -> None:
    assert _stride(count) == stride
    assert len(range(count)[::stride]) <= 48
