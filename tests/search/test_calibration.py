"""Secant calibration: on curves that are known, where it cannot succeed, and on a real model."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from tiny_search import SAMPLING, random_vectors, tiny_model

from steer2edit.core import Intervention, Steering
from steer2edit.engines import TransformersEngine
from steer2edit.errors import InvalidValueError
from steer2edit.estimates import Estimate
from steer2edit.evaluation import DriftTask, calibrate
from steer2edit.steering.secant import Calibration
from unchecked import unchecked


class Curve:
    """A drift task whose KL is a known function of the strength."""

    def __init__(self, kl: Callable[[float], float | None]) -> None:
        self.kl = kl
        self.tried: list[float] = []

    def measure(self, engine: object, interventions: list[float]) -> list[SimpleNamespace]:
        (strength,) = interventions
        self.tried.append(strength)
        return [SimpleNamespace(metrics={"kl": Estimate(self.kl(strength), None, None, 4)})]


def found_on(curve: Curve, target: float, first: float = 1.0, **settings: float) -> Calibration:
    with unchecked():
        (found,) = calibrate(None, [(lambda strength: strength, first)], curve, target, **settings)  # type: ignore[arg-type, list-item, return-value]
        return found


def test_drift_that_is_rounding_at_small_strengths_does_not_hold_it_up() -> None:
    """In bfloat16 the smallest strengths drift by about the same, in no order."""
    noise = iter([0.0019, 0.0016, 0.0017, 0.0015, *[0.0018] * 20])
    found = found_on(Curve(lambda s: max(0.5 * s * s, next(noise))), 0.06, first=5e-4, most_steps=14)
    assert found.reached
    assert found.strength == pytest.approx(0.346, rel=0.03)


@pytest.mark.parametrize("first", [0.01, 0.5, 1.0, 30.0])
@pytest.mark.parametrize("target", [0.01, 0.3, 2.0])
def test_quadratic(first: float, target: float) -> None:
    """√KL is linear: the second strength is exact, unless the first is so small that the step is bounded."""
    found = found_on(Curve(lambda s: 0.5 * s * s), target, first=first)
    assert found.reached
    assert found.drift == pytest.approx(target, rel=0.05)
    assert found.strength == pytest.approx(math.sqrt(2 * target), rel=0.03)
    assert found.steps <= 8
    if first >= 0.5:
        assert found.steps <= 3


@pytest.mark.parametrize("target", [0.05, 0.5, 0.9])
def test_saturating(target: float) -> None:
    curve = Curve(lambda s: 1 - math.exp(-s * s))
    found = found_on(curve, target)
    assert found.reached
    assert found.strength == pytest.approx(math.sqrt(-math.log(1 - target)), rel=0.1)
    assert found.steps == len(curve.tried) <= 8


def test_a_target_above_what_can_be_spent_is_not_reached() -> None:
    curve = Curve(lambda s: 0.5 * (1 - math.exp(-s * s)))
    found = found_on(curve, 0.8)
    assert not found.reached
    assert found.drift == pytest.approx(0.5, abs=0.01)  # as near as can be
    assert len(curve.tried) == 10


def test_not_finite_is_far_too_strong() -> None:
    curve = Curve(lambda s: None if s > 0.7 else 0.5 * s * s)
    found = found_on(curve, 0.02)
    assert found.reached
    assert found.strength == pytest.approx(0.2, rel=0.05)
    assert curve.tried[:2] == [1.0, 0.5]


def test_never_finite() -> None:
    assert found_on(Curve(lambda s: None), 0.1) == Calibration(0.0, 0.0, 0, False)


def test_bad_targets_and_no_drift() -> None:
    for target in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InvalidValueError, match="the target KL must be > 0"):
            found_on(Curve(lambda s: s), target)
    with pytest.raises(InvalidValueError, match="causes no drift at all"):
        found_on(Curve(lambda s: 0.0), 0.1)


def test_on_a_model() -> None:
    model = tiny_model()
    engine, vectors = TransformersEngine(model), random_vectors(model)
    task = DriftTask("", [f"is {i}" for i in range(6)], SAMPLING)

    def steered(strength: float) -> Intervention:
        return Steering(vectors, strength)

    (found,) = calibrate(engine, [(steered, 0.1)], task, 0.1)
    assert found.reached
    assert found.steps <= 8
    again = task.measure(engine, [steered(found.strength)])[0].metrics["kl"].value
    assert again == pytest.approx(found.drift, rel=1e-5)
    assert again == pytest.approx(0.1, rel=0.05)
