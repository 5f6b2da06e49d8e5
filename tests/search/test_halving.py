"""A generation: the sanity filter, the rungs, and that every item is measured once per surviving trial."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from tiny_search import ITEMS, MAX_KL, SAMPLING, CountingEngine, facts, tiny_behaviour, tiny_model, tiny_search

from steer2edit.core import Editing
from steer2edit.engines import TransformersEngine
from steer2edit.evaluation import evaluate
from steer2edit.evaluation.task import Arm
from steer2edit.models import Reply
from steer2edit.search.generation import DEGENERATE, NO_EDIT, measure_generation, sanity_task
from steer2edit.search.search import Search
from steer2edit.search.space import Parameters
from steer2edit.search.study import Trial

SANE = [
    {"blocks": "mlp", "rho_attn": 0.5, "rho_mlp": rho, "alpha": alpha}
    for rho, alpha in ((0.3, 0.9), (0.3, 0.5), (0.35, 0.4), (0.25, 0.6), (0.4, 0.2),
                       (0.3, 0.3), (0.45, 0.1), (0.5, 0.0), (0.28, 0.7), (0.33, 0.6))
]  # fmt: skip
TOO_MUCH = {"blocks": "both", "rho_attn": 0.02, "rho_mlp": 0.02, "alpha": 0.98}
NEXT_TO_NOTHING = {"blocks": "attn", "rho_attn": 2.0, "rho_mlp": 0.5, "alpha": 0.1}
NOTHING = {"blocks": "mlp", "rho_attn": 0.5, "rho_mlp": 2.0, "alpha": 0.98}


def generation(search: Search, proposals: list[Parameters], drifts: tuple[float, float] = (1e-4, 2.0)) -> list[Trial]:
    return measure_generation(search, proposals, 3, drifts=drifts)


def counted() -> tuple[Search, CountingEngine]:
    engine = CountingEngine(TransformersEngine(tiny_model()))
    return tiny_search(engine=engine), engine


def test_every_item_once_per_surviving_trial() -> None:
    search, engine = counted()
    trials = generation(search, SANE)
    assert [trial.parameters for trial in trials] == SANE  # in their order
    assert [(trial.generation, trial.index) for trial in trials] == [(3, i) for i in range(10)]
    # 10 trials see 2 items, the better 5 three more, the better 4 (never fewer) the other five
    shares = [trial.share for trial in trials]
    assert Counter(shares) == {0.25: 5, 0.5: 1, 1.0: 4}
    items = {0.25: 2, 0.5: 5, 1.0: ITEMS}
    for trial in trials:
        assert len(trial.values["harmful_refused"]) == len(trial.values["kl"]) == items[trial.share]
        assert trial.complete == (trial.share == 1)
        if not trial.complete:
            assert trial.stopped == f"less promising than half of its generation after {trial.share:.0%} of the items"
    assert max(Counter(engine.generated).values()) == 1
    by_edit = Counter(edit for _, edit in engine.generated)
    assert sorted(by_edit.values()) == sorted(items[share] for share in shares)
    asked = list(tiny_behaviour("validation").prompts["harmful"])
    for edit, count in by_edit.items():
        assert [prompt for prompt, own in engine.generated if own == edit] == asked[:count]  # in the order of the items
    # drift: 8 sanity requests, and the items
    scored = Counter(edit for _, edit in engine.scored)
    assert sorted(scored.values()) == sorted(8 + items[share] for share in shares)


def test_parts_joined_are_the_whole() -> None:
    """What the rungs found of a trial is what one evaluation of all items finds."""
    search, _ = counted()
    trials = generation(search, SANE[:4])
    assert all(trial.complete for trial in trials)  # four are kept at every rung
    edits = search.factors.edits([trial.hyperparameters for trial in trials])
    whole = evaluate(search.engine, search.validation.tasks, [Arm("edit", "", Editing(edit)) for edit in edits])
    for trial, expected in zip(trials, whole, strict=True):
        assert trial.replies == expected.replies
        assert trial.outcomes == expected.outcomes
        assert trial.values["harmful_refused"] == expected.values["harmful_refused"]
        for name in ("kl", "nll_increase"):
            assert trial.values[name] == pytest.approx(expected.values[name], abs=1e-5)
            assert trial.metrics[name].value == pytest.approx(expected.metrics[name].value, abs=1e-5)


def test_filter_stops_before_a_token_is_generated() -> None:
    search, engine = counted()
    trials = generation(search, [NOTHING, NEXT_TO_NOTHING, SANE[0], TOO_MUCH], drifts=(0.005, 0.5))
    assert trials[0].stopped == NO_EDIT
    assert trials[1].stopped is not None
    assert trials[1].stopped.startswith(f"{NO_EDIT}: KL 0.0")
    assert trials[2].complete
    assert trials[3].stopped is not None
    assert trials[3].stopped.startswith(f"{DEGENERATE}: KL ")
    stopped = [trials[0], trials[1], trials[3]]
    assert [trial.share for trial in stopped] == [0, 0, 0]
    assert [set(trial.values) for trial in stopped] == [set(), {"sanity_kl"}, {"sanity_kl"}]
    assert len({edit for _, edit in engine.generated}) == 1  # of the one that is left
    assert len({edit for _, edit in engine.scored}) == 3  # nothing at all of the first
    reasons = [(trial.stopped or "complete").split(":")[0] for trial in trials]
    assert sorted(reasons) == sorted(["complete", NO_EDIT, NO_EDIT, DEGENERATE])


def test_nothing_is_left() -> None:
    search, engine = counted()
    trials = generation(search, [NOTHING, {**NOTHING, "alpha": 0.97}])
    assert [trial.stopped for trial in trials] == [NO_EDIT, NO_EDIT]
    assert engine.generated == engine.scored == []


class OverflowingEngine(CountingEngine):
    """Whose last response is not finite under any edit: an edit need not break every reply to be broken."""

    def score(self, responses: Any, interventions: Any, *, kl: bool = True) -> Any:
        scores = super().score(responses, interventions, kl=kl)
        return [
            own if intervention is None else [*own[:-1], replace(own[-1], kl=math.nan)]
            for own, intervention in zip(scores, interventions, strict=True)
        ]


def test_not_finite_is_degenerate() -> None:
    search = tiny_search(engine=OverflowingEngine(TransformersEngine(tiny_model())))
    for trial in generation(search, SANE[:2]):
        assert trial.stopped == f"{DEGENERATE}: KL not finite on 8 short benign requests"
        assert trial.to_json()["values"]["sanity_kl"][-1] is None  # JSON has no NaN


class MuteEngine(CountingEngine):
    """Whose base model answers one of the requests with nothing."""

    def generate(self, requests: Any, sampling: Any) -> list[Reply]:
        replies = super().generate(requests, sampling)
        return [
            replace(reply, ids=(), text="") if request.intervention is None and request.prompt == "is v3" else reply
            for request, reply in zip(requests, replies, strict=True)
        ]


def test_a_request_that_the_base_does_not_answer_damns_no_edit() -> None:
    search = tiny_search(engine=MuteEngine(TransformersEngine(tiny_model())))
    (trial,) = generation(search, SANE[:1])
    assert trial.complete
    assert trial.values["kl"][3] is None
    assert (trial.metrics["kl"].n, trial.metrics["kl"].unscored) == (ITEMS - 1, 1)


def test_a_rung_without_items_stops_nobody() -> None:
    """A quarter and a half of one item are none: nothing may be stopped for it."""
    search, _ = counted()
    trials = generation(replace(search, validation=tiny_behaviour("validation", items=1)), SANE)
    assert all(trial.complete for trial in trials)
    assert all(len(trial.values["kl"]) == 1 for trial in trials)


def test_reproducible() -> None:
    once, again = (facts(generation(tiny_search(), SANE)) for _ in range(2))
    assert once == again


def test_sanity_task_is_short_and_benign() -> None:
    behaviour = tiny_behaviour("validation", items=12)
    task = sanity_task(behaviour)
    assert list(task.items) == [f"is v{i}" for i in range(8)]  # the two longest, v10 and v11, and two more are not
    assert task.sampling.max_new_tokens == 12 > SAMPLING.max_new_tokens


def test_limits_of_the_filter_follow_the_budget() -> None:
    search = tiny_search()
    assert search.sane_drifts == pytest.approx((0.002 * MAX_KL, 4 * MAX_KL))
