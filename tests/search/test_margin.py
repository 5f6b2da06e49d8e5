"""A budget is kept with a margin on the items that an edit is chosen on; what breaks it on others is said first."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_search import run, tiny_search

from steer2edit.artifacts.manifest import EditManifest, read_manifest
from steer2edit.estimates import Estimate
from steer2edit.evaluation.statistics import rate
from steer2edit.search.goal import Budget
from steer2edit.search.run import search_results

BUDGET = Budget({"refused": 0.08})


def refused(count: int, of: int) -> dict[str, Estimate]:
    return {"refused": rate([True] * count + [False] * (of - count))}


def test_the_worse_end_of_the_interval_must_keep_it() -> None:
    # Wilson's upper ends of 0, 1, 2, 3 of 48: 7.4, 10.9, 14.0, 16.8 %; of 3 of 96: 8.8 %, of 2 of 96: 7.3 %
    measured = [refused(k, n) for k, n in ((3, 48), (0, 48), (1, 48), (4, 48), (2, 96), (3, 96))]
    assert [m["refused"].high for m in measured[:3]] == pytest.approx([0.168, 0.074, 0.109], abs=5e-4)
    assert BUDGET.kept(measured) == [1, 4]
    floor = Budget(at_least={"accuracy": 0.5})
    assert floor.kept([{"accuracy": Estimate(0.6, low, 0.8, 50)} for low in (0.45, 0.51)]) == [1]


def test_where_none_keeps_it_so_the_nearest_of_those_within_are_left() -> None:
    measured = [refused(k, 16) for k in (0, 1, 2, 0)]  # upper ends from 19 % on; 2 of 16 are beyond 8 % themselves
    assert BUDGET.kept(measured) == [0, 3]
    assert BUDGET.kept([refused(1, 16), refused(2, 16)]) == [0]
    assert BUDGET.kept([refused(2, 16)]) == BUDGET.kept([]) == BUDGET.kept([{}]) == []


def test_one_value_has_no_interval() -> None:
    assert BUDGET.kept([{"refused": Estimate(0.05, None, None, 1)}, {"refused": Estimate(0.1, None, None, 1)}]) == [0]


def test_what_breaks_it_is_named_with_budget_value_and_interval() -> None:
    budget = Budget({"refused": 0.08, "kl": 0.15}, {"accuracy": 0.5})
    found = {"kl": Estimate(0.1, 0.05, 0.2, 96), "accuracy": Estimate(0.4, 0.3, 0.55, 96)}
    assert budget.broken(refused(12, 96) | found) == (
        "BEYOND ITS BUDGET on held-out items: refused 0.125 [0.073, 0.206], budget <= 0.08; "
        "accuracy 0.4 [0.3, 0.55], budget >= 0.5."
    )
    assert BUDGET.broken(refused(7, 96)) == ""
    assert "refused not scored" in BUDGET.broken({})


def share_broken(choose: bool, searches: int = 300) -> float:
    """How often the best of 32 configurations that keep 8 % on 48 items is beyond it on 96 others."""
    generator = np.random.default_rng(0)
    measured, broken = [refused(k, 48) for k in range(49)], 0
    for _ in range(searches):
        share = generator.uniform(0, 0.2, 32)
        gain = 0.4 + 2 * share + generator.normal(0, 0.1, 32)  # what refuses more refuses more of the rest as well
        found = [measured[k] for k in generator.binomial(48, share)]
        allowed = BUDGET.kept(found) if choose else [i for i, m in enumerate(found) if not BUDGET.violation(m)]
        best = max(allowed, key=lambda i: gain[i])
        broken += bool(BUDGET.broken(refused(int(generator.binomial(96, share[best])), 96)))
    return broken / searches


def test_the_margin_makes_a_broken_budget_rare() -> None:
    assert share_broken(choose=False) > 0.4
    assert share_broken(choose=True) < 0.1


@pytest.mark.parametrize("beyond", [True, False])
def test_summary_manifest_and_card_say_it_first(beyond: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if beyond:
        monkeypatch.setattr(Budget, "broken", lambda self, held_out: f"BEYOND: kl {held_out['kl'].value:.3f}.")
    search = tiny_search(trials=8, generation=4)
    result = run(search, tmp_path)
    drift = result.held_out[-1].metrics["kl"].value
    said = f"BEYOND: kl {drift:.3f}." if beyond else ""
    assert result.beyond_budget == said
    results = search_results(search, result)
    assert results["beyond_budget"] == said
    assert results["summary"][0].startswith("BEYOND" if beyond else "8 configurations tried")
    manifest = read_manifest(tmp_path / "edit", EditManifest)
    assert (manifest.evaluation or {})["beyond_budget"] == said
    card = (tmp_path / "edit" / "README.md").read_text(encoding="utf-8").split("\n# ")[1].splitlines()
    assert card[2] == (f"**{said}**" if beyond else card[2])
    assert ("BEYOND" in "\n".join(card)) is beyond


def test_the_front_keeps_the_margin(tmp_path: Path) -> None:
    search = tiny_search(trials=8, generation=4)
    result = run(search, tmp_path / "wide")
    complete = [t for t in result.trials if t.complete]
    kept = search.budget.kept([t.metrics for t in complete])
    assert {t.key for t in result.front} <= {complete[i].key for i in kept}
    drift = result.recommended.metrics["kl"]
    assert drift.value is not None
    assert drift.high is not None
    narrow = Budget({"kl": (drift.value + drift.high) / 2})  # between the estimate and the end of its interval
    other = run(replace(search, budget=narrow), tmp_path / "narrow")
    assert other.recommended.metrics["kl"].high < drift.high
