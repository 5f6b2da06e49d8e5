"""The diagnosis tells a planted direction from random labels, and its AUROC is the hand count with a 95 % interval."""

import math

import numpy as np
import pytest
import torch
from planting import planted, random_contrast

from steer2edit.core import Site
from steer2edit.steering.contrast import Contrast, ContrastSet
from steer2edit.steering.diagnosis import SiteDiagnosis, auroc
from steer2edit.steering.extract import extract
from tiny_chat import tiny_chat_model

Z2 = 1.959964**2


class TestAuroc:
    @pytest.mark.parametrize(
        ("positive", "negative", "area"),
        [
            # 3 beats 0 and 2; 1 beats 0; 2 beats 0 and ties with 2: (2 + 1 + 1.5) / 6
            ([3.0, 1.0, 2.0], [0.0, 2.0], 0.75),
            ([2.0, 3.0], [0.0, 1.0], 1.0),
            ([0.0], [1.0, 2.0], 0.0),
            ([1.0, 1.0], [1.0, 1.0], 0.5),
            ([1.0, 4.0], [2.0, 3.0], 0.5),
        ],
    )
    def test_hand_count(self, positive: list[float], negative: list[float], area: float) -> None:
        value, low, high = auroc(positive, negative)
        assert value == pytest.approx(area)
        assert low is not None
        assert high is not None
        assert 0 <= low <= area <= high <= 1
        assert high - low > 0.1  # so few responses say little, also where they are separated perfectly

    def test_interval_of_one_against_one(self) -> None:
        # n1 = n2 = 1, so N = 0 and V = θ(1−θ): Wilson's interval of one trial.
        # Success: (1−θ)² = z² θ(1−θ), so θ = 1 / (1 + z²) = 0.2065. A tie: ½ ± z / (2 √(1 + z²)) = ½ ± 0.4454.
        assert auroc([1.0], [0.0]) == pytest.approx((1.0, 1 / (1 + Z2), 1.0), abs=1e-6)
        assert auroc([0.0], [1.0]) == pytest.approx((0.0, 0.0, Z2 / (1 + Z2)), abs=1e-6)
        half = math.sqrt(Z2 / (1 + Z2)) / 2
        assert auroc([1.0], [1.0]) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-6)

    def test_interval_of_two_against_two(self) -> None:
        # Perfect separation, N = 1: 4 (1−θ) = z² θ [1 + (1−θ)/(2−θ) + θ/(1+θ)]. Times (2−θ)(1+θ):
        # (4 + 3z²) θ³ − (8 + 3z²) θ² − (4 + 3z²) θ + 8 = 0
        roots = np.roots([4 + 3 * Z2, -(8 + 3 * Z2), -(4 + 3 * Z2), 8])
        (wanted,) = [root.real for root in roots if 0 < root.real < 1]
        assert auroc([2.0, 3.0], [0.0, 1.0]) == pytest.approx((1.0, wanted, 1.0), abs=1e-6)

    def test_classes_exchanged(self) -> None:
        value, low, high = auroc([3.0, 1.0, 2.0, 5.0], [0.0, 2.5])
        assert auroc([0.0, 2.5], [3.0, 1.0, 2.0, 5.0]) == pytest.approx((1 - value, 1 - high, 1 - low))

    @pytest.mark.slow
    def test_the_interval_covers_the_truth(self) -> None:
        # normal scores a standard deviation apart: the area is Φ(1/√2) = 0.7602
        generator = np.random.default_rng(0)
        covered = 0
        for _ in range(200):
            _, low, high = auroc((generator.normal(size=20) + 1).tolist(), generator.normal(size=15).tolist())
            covered += low < 0.7602 < high
        assert 0.91 <= covered / 200 <= 0.99

    def test_narrows_with_more_responses(self) -> None:
        _, few, _ = auroc([1.0] * 5, [0.0] * 5)
        _, many, _ = auroc([1.0] * 50, [0.0] * 50)
        assert few < many < 1

    @pytest.mark.parametrize(("positive", "negative"), [([], [1.0]), ([1.0], []), ([], [])])
    def test_empty_class(self, positive: list[float], negative: list[float]) -> None:
        assert auroc(positive, negative) == (None, None, None)


class TestVerdict:
    @pytest.mark.parametrize(
        ("cosine", "low", "noise"),
        [
            (0.9, 0.8, False),
            (0.49, 0.8, True),
            (0.9, 0.5, True),
            (0.9, 0.3, True),
            (None, 0.8, False),
            (0.9, None, False),
            (None, None, False),  # not judged at all; the summary says so
            (-0.9, 0.9, True),
        ],
    )
    def test_table(self, cosine: float | None, low: float | None, noise: bool) -> None:
        area = None if low is None else 0.95
        site = SiteDiagnosis(1.0, cosine, area, low, area)
        assert site.noise is noise
        assert site.to_json() == {
            "norm": 1.0,
            "split_half_cosine": cosine,
            "auroc": area,
            "auroc_low": low,
            "auroc_high": area,
            "noise": noise,
        }

    def test_what_is_not_a_number_is_no_signal(self) -> None:
        area = auroc([math.nan, 1.0], [0.0])
        assert area == (None, None, None) or SiteDiagnosis(1.0, 0.9, *area).noise

    def test_random_labels_are_noise(self) -> None:
        diagnosis = extract(tiny_chat_model(), random_contrast(train=24, validation=16)).diagnosis
        assert diagnosis is not None
        assert all(site["noise"] for site in diagnosis["sites"].values())
        assert diagnosis["summary"].startswith("NOISE: none of the 6 sites carries a signal")

    def test_a_planted_direction_is_a_signal_and_the_rest_stays_noise(self) -> None:
        model = tiny_chat_model()
        contrast = random_contrast(train=24, validation=16)
        direction = torch.randn(48, generator=torch.Generator().manual_seed(3))
        with planted(model, contrast, Site(2, "mlp"), direction):
            diagnosis = extract(model, contrast).diagnosis
        assert diagnosis is not None
        site = diagnosis["sites"]["L2.mlp"]
        assert not site["noise"]
        assert site["split_half_cosine"] > 0.95
        assert site["auroc"] == 1.0
        wanted = "1 of 6 sites carry a signal; noise (5): L0.attn, L0.mlp, L1.attn, L1.mlp, L2.attn."
        assert diagnosis["summary"] == wanted

    def test_all_sites_carry_a_signal(self) -> None:
        # other words in the two classes: every site of a random model can tell them apart
        pairs = {
            side: tuple((f"question {i}", word) for i in range(20))
            for side, word in (("positive", "sorry can't help"), ("negative", "Mix the flour"))
        }
        parts = {"train": Contrast(pairs["positive"][:12], pairs["negative"][:12])}
        parts["validation"] = Contrast(pairs["positive"][12:], pairs["negative"][12:])
        diagnosis = extract(tiny_chat_model(), ContrastSet("words", parts, {})).diagnosis
        assert diagnosis is not None
        assert diagnosis["summary"] == "All 6 sites carry a signal."

    def test_too_few_to_judge(self) -> None:
        contrast = ContrastSet("one each", {"train": Contrast((("a", "yes"),), (("a", "no"),))}, {})
        diagnosis = extract(tiny_chat_model(), contrast).diagnosis
        assert diagnosis is not None
        assert diagnosis["summary"].startswith("The vectors could not be judged")
        site = diagnosis["sites"]["L0.attn"]
        assert (site["split_half_cosine"], site["auroc"], site["noise"]) == (None, None, False)
        assert diagnosis["counts"]["held_out"] == {"positive": 0, "negative": 0}
