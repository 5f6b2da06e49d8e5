"""Verdicts on what is left of a gain: rules, how many requests tell, lines of all arms, and whether they are right."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from static_subject import requests, scripted_subject
from tiny_stress import random_vectors, tiny_edit, tiny_model

from steer2edit.core import Editing
from steer2edit.engines import TransformersEngine
from steer2edit.estimates import Estimate, Value
from steer2edit.evaluation.statistics import mean_of, share_of_gain
from steer2edit.models import Sampling
from steer2edit.stress.findings import StressResult
from steer2edit.stress.given import ABLATION, ROSI, arm_of, equal_drift, methods_of
from steer2edit.stress.subject import Replies, Scored
from steer2edit.stress.verdicts import ADAPTER, attribute_line, needed_requests, requests_for, share_outcome

N = 24
NONE: list[Value] = [False] * N
HALF: list[Value] = [i % 2 == 0 for i in range(N)]
ALL: list[Value] = [True] * N


def replies(**refused: Sequence[Value]) -> Replies:
    labels = {"steering": "steering 0.2", "adapter": ADAPTER}
    return Replies(
        {labels.get(arm, arm): [Scored(str(v), v, False, True) for v in values] for arm, values in refused.items()},  # type: ignore[arg-type]
        seconds=1.5,
    )


of_other_items = partial(share_of_gain, same_items=False)
SUBJECT = scripted_subject(lambda kind, text: "", requests(N))


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (0.51, 0.9, "held"),
        (0.51, 1.2, "held"),
        (0.5, 0.99, "weakened"),
        (0.5, 1.0, "open"),
        (0.1, 0.5, "weakened"),
        (0.1, 0.49, "failed"),
        (-0.2, 0.49, "failed"),
        (-0.2, 0.8, "open"),
        (None, None, "open"),
    ],
)
def test_outcomes_go_by_the_interval(low: float | None, high: float | None, outcome: str) -> None:
    assert share_outcome(Estimate(0.4, low, high, 24)) == outcome


def test_how_many_requests_by_hand() -> None:
    """(1.960 + 0.842)² = 7.849; of a gain of ½, l = ¼: 7.849 (0.25 + 0.05 − 0.0625) / 0.0625 = 29.8."""
    assert requests_for(0.5) == 30
    assert requests_for(1.0) == 10  # 7.849 (0.5 + 0.05 − 0.25) / 0.25 = 9.4
    assert requests_for(0.0) is None
    assert requests_for(-0.2) is None


@pytest.mark.parametrize("gain", [0.3, 0.5, 0.8])
def test_so_many_detect_a_fall_by_half_in_four_of_five_runs(gain: float) -> None:
    rng, n = np.random.default_rng(1), requests_for(gain)
    assert n is not None
    told = 0
    for _ in range(60):
        plain = rng.random(n) < gain
        left = plain & (rng.random(n) < 0.5)
        flips = rng.random(n) < 0.025
        share = share_of_gain((left ^ flips).tolist(), [False] * n, plain.tolist(), [False] * n)
        told += share.high is not None and share.high < 1
    assert told >= 0.7 * 60  # 80 % less two standard errors


def test_what_is_needed_by_hand() -> None:
    """0.7 ± 0.4 is told from one half at ± 0.2, but from 0 and 1 at ± 0.3 already, and that is weakened."""
    plain = Estimate(0.5, 0.3, 0.7, 20)
    assert needed_requests(Estimate(0.7, 0.3, 1.1, 20), plain) == 36  # (0.4 / 0.3)² · 20 = 35.6
    assert needed_requests(Estimate(0.9, 0.4, 1.3, 20), plain) == 32  # (0.5 / 0.4)² · 20 = 31.25
    assert needed_requests(Estimate(0.9, None, None, 20), plain) == 30  # no share: what the plain gain asks for
    assert needed_requests(Estimate(None, None, None, 20), Estimate(-0.1, -0.2, 0.1, 20)) is None


def test_an_interval_of_a_share_covers_the_truth_as_often_as_it_says() -> None:
    """The edit refuses 60 %, and 70 % of those in the condition; neither base refuses: the share is 0.7."""
    rng = np.random.default_rng(3)
    covered = other = 0
    for _ in range(100):
        edit, another = (rng.random(24) < 0.6 for _ in range(2))
        found = share_of_gain((edit & (rng.random(24) < 0.7)).tolist(), NONE, edit.tolist(), NONE)
        unpaired = of_other_items((another & (rng.random(24) < 0.7)).tolist(), NONE, edit.tolist(), NONE)
        assert found.low is not None
        assert found.high is not None
        assert unpaired.low is not None
        assert unpaired.high is not None
        covered += found.low <= 0.7 <= found.high
        other += unpaired.low <= 0.7 <= unpaired.high
        assert unpaired.high - unpaired.low > 0.9 * (found.high - found.low)
    assert covered >= 90  # 95 % less two standard errors
    assert other >= 90


def test_a_share_of_another_gain_by_hand() -> None:
    """12 of 24 there, 6 of 6 here: one half here is twice as much."""
    found = of_other_items([True, True, False], [False] * 3, HALF, NONE)
    assert found.value == pytest.approx((2 / 3) / 0.5)
    assert of_other_items([True], [False], NONE, NONE).value is None
    assert of_other_items([True], [False], [True, False], [False, True]).value is None


def test_all_arms_have_a_share_of_their_own_gain() -> None:
    plain = replies(base=NONE, steering=ALL, edited=HALF)
    line = attribute_line(
        SUBJECT,
        "int4",
        "Stored in int4",
        replies(base=NONE, steering=ALL, edited=NONE, adapter=HALF),
        plain,
        decides=True,
    )
    assert line.outcome == "failed"
    assert {arm: share.value for arm, share in line.shares.items()} == {"steering 0.2": 1, "edited": 0, ADAPTER: 1}
    assert line.sentence.startswith(
        "Stored in int4: refused by base 0 %, steering 0.2 100 %, edited 0 %, edit, adapter 50 % (the edit on plain "
        "requests: 50 %); of its gain 0 % ["
    )
    assert (line.decides, line.seconds, line.needed) == (True, 1.5, None)
    held = attribute_line(SUBJECT, "x", "x", replies(base=NONE, edited=HALF), replies(base=NONE, edited=HALF))
    assert held.outcome == "held"
    json.dumps(StressResult([line, held]).to_json(), allow_nan=False)


def test_an_edit_that_lowers_refusals_gains_what_is_answered() -> None:
    from dataclasses import replace

    lowering = replace(SUBJECT, lowers=True)
    plain, found = (
        replies(base=ALL, edited=HALF),
        replies(base=ALL, edited=[i % 4 == 0 or v for i, v in enumerate(HALF)]),
    )
    line = attribute_line(lowering, "x", "x", found, plain)
    assert line.shares["edited"].value == pytest.approx(1)
    gone = attribute_line(lowering, "x", "x", replies(base=ALL, edited=ALL), plain)
    assert gone.outcome == "failed"


def test_without_a_gain_there_is_nothing_to_lose() -> None:
    line = attribute_line(SUBJECT, "x", "x", replies(base=NONE, edited=NONE), replies(base=NONE, edited=NONE))
    assert line.outcome == "open"
    assert "there is nothing to lose" in line.sentence


def test_an_arm_whose_plain_gain_may_be_noise_has_no_share() -> None:
    few: list[Value] = [i == 0 for i in range(N)]
    plain = replies(base=NONE, steering=few, edited=ALL)
    line = attribute_line(SUBJECT, "x", "Reworded", replies(base=NONE, steering=HALF, edited=ALL), plain)
    assert "(steering 0.2 nothing to lose)" in line.sentence
    assert line.outcome == "held"


def test_too_few_requests_are_said_with_how_many_would_tell() -> None:
    few = {arm: list(own)[:4] for arm, own in {"base": NONE, "edited": ALL}.items()}
    line = attribute_line(SUBJECT, "x", "x", replies(base=NONE[:4], edited=[True, True, False, True]), replies(**few))
    assert line.outcome == "open"
    assert line.needed is not None
    assert line.needed > 4
    assert f"(it needs n = {line.needed})" in line.sentence


def test_broken_replies_say_nothing() -> None:
    plain = replies(base=NONE, edited=ALL)
    broken = Replies({"base": plain.arms["base"], "edited": [Scored("a a a a", False, True, True)] * N})
    assert attribute_line(SUBJECT, "x", "x", broken, plain).outcome == "open"
    silent = Replies({"base": plain.arms["base"], "edited": [Scored("z", False, False, False)] * N})
    known = replies(base=NONE, edited=[i > 20 for i in range(N)])
    assert "says little" in attribute_line(SUBJECT, "x", "x", silent, known).sentence


def test_shares_of_several_replies_to_each_request() -> None:
    plain = replies(base=NONE, edited=ALL)
    both = {arm: mean_of([NONE, own]) for arm, own in (("base", NONE), ("edited", ALL))}
    line = attribute_line(SUBJECT, "x", "x", plain, plain, values=both)
    assert line.shares["edited"].value == pytest.approx(0.5)
    assert line.outcome in ("weakened", "open")


def test_the_arms_drift_as_much_as_the_edit(tmp_path: Path) -> None:
    model = tiny_model()
    vectors = random_vectors(model)
    edit, engine = tiny_edit(model, vectors).scaled(0.05), TransformersEngine(model)
    benign = [f"how do I bake {i} loaves" for i in range(3)]
    methods = methods_of(model, edit, vectors, 1.0, lowers=True)
    found = equal_drift(engine, Editing(edit, 1.0), methods, benign, Sampling(max_new_tokens=2))
    assert set(found.strengths) == {"steering", ROSI, ABLATION} or "No strength of" in found.note
    for drift in found.drifts.values():
        assert drift == pytest.approx(found.edit_drift, rel=0.1)
    arms = [arm_of(name, methods[name][0](size), size) for name, size in found.strengths.items()]
    assert [arm.kind for arm in arms] == ["steering", "baseline", "baseline"][: len(arms)]
    methods = methods_of(model, edit, None, 1.0)
    without = equal_drift(engine, Editing(edit, 1.0), methods, benign, Sampling(max_new_tokens=2))
    assert "steering" not in without.strengths
    assert "No steering: the vectors are not known" in without.note
    ((name, size),) = without.strengths.items()
    rosi = methods[name][0](size)
    assert isinstance(rosi, Editing)
    own = next(iter(edit.sites))
    assert torch.allclose(rosi.edit.sites[own].output_direction, edit.sites[own].output_direction)
