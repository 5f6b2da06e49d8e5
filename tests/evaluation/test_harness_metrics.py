"""The harness's results as estimates; the results are written out in the shape that lm_eval 0.4.13 gives them."""

import math

import numpy as np
import pytest

from steer2edit.estimates import Estimate
from steer2edit.evaluation.harness import read_metrics
from steer2edit.evaluation.statistics import mean, rate


def samples(metric: str, values: list[object], answer_filter: str = "none") -> list[dict[str, object]]:
    """In another order than the documents', as batches and ranks may leave them."""
    items = [{"doc_id": i, "filter": answer_filter, "metrics": [metric], metric: v} for i, v in enumerate(values)]
    return items[::-1]


def entries(metric: str, value: float, error: float | str, n: int, answer_filter: str = "none") -> dict[str, object]:
    return {
        "alias": "t",
        "name": "t",
        "sample_len": n,
        f"{metric},{answer_filter}": value,
        f"{metric}_stderr,{answer_filter}": error,
    }


def test_hits_and_misses() -> None:
    found = read_metrics(
        {"results": {"t": entries("acc", 0.75, 0.25, 4)}, "samples": {"t": samples("acc", [1, 0, 1, 1])}}
    )
    assert list(found) == ["t.acc"]
    accuracy = found["t.acc"]
    assert accuracy.values == (True, False, True, True)
    assert accuracy.estimate == rate([True, False, True, True])
    assert (accuracy.reported, accuracy.reported_error) == (0.75, 0.25)


def test_numbers_of_numpy() -> None:
    values = [np.float32(0.5), np.float32(0.25), np.float64(0.0)]
    found = read_metrics(
        {"results": {"t": entries("score", np.float64(0.25), "N/A", 3)}, "samples": {"t": samples("score", values)}}
    )
    assert found["t.score"].values == (0.5, 0.25, 0.0)
    assert found["t.score"].estimate == mean([0.5, 0.25, 0.0])
    assert found["t.score"].reported_error is None


def test_filters_are_apart() -> None:
    strict, flexible = samples("exact_match", [0, 0], "strict"), samples("exact_match", [1, 0], "flexible")
    results = {**entries("exact_match", 0.0, 0.0, 2, "strict"), **entries("exact_match", 0.5, 0.5, 2, "flexible")}
    found = read_metrics({"results": {"t": results}, "samples": {"t": strict + flexible}})
    assert {name: metric.values for name, metric in found.items()} == {
        "t.exact_match.strict": (False, False),
        "t.exact_match.flexible": (True, False),
    }


def test_what_is_no_mean_over_items_keeps_the_harness_interval() -> None:
    found = read_metrics(
        {
            "results": {
                "t": entries("word_perplexity", 20.0, 1.0, 3),
                "f": entries("f1", 0.7, "N/A", 3),
                "group": entries("acc", 0.6, 0.1, 30),
            },
            "samples": {
                "t": samples("word_perplexity", [(-5.0, 2), (-6.0, 2), (-7.0, 2)]),
                "f": samples("f1", [1.0, 0.0, 1.0]),
            },
        }
    )
    assert [metric.values for metric in found.values()] == [None, None, None]
    perplexity, f1, group = (metric.estimate for metric in found.values())
    assert (perplexity.value, perplexity.n) == (20.0, 3)
    assert (perplexity.low, perplexity.high) == (pytest.approx(18.04, abs=1e-3), pytest.approx(21.96, abs=1e-3))
    assert f1 == Estimate(0.7, None, None, 3)
    assert (group.low, group.high, group.n) == (pytest.approx(0.404, abs=1e-3), pytest.approx(0.796, abs=1e-3), 30)


def test_not_a_number_is_unscored() -> None:
    found = read_metrics({"results": {"t": entries("acc", math.nan, math.nan, 5)}, "samples": {}})
    assert found["t.acc"].estimate == Estimate(None, None, None, 0, unscored=5)
