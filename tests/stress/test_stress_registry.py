"""Which tests there are, and what they cost without a model."""

import re

import pytest
from tiny_stress import ToyTest

from steer2edit.errors import DataError
from steer2edit.stress import GROUPS, SUITES, StressOptions, StressTest, Subject, all_tests, choose_tests
from steer2edit.stress.attack_lines import STATIC_TOGETHER
from steer2edit.stress.rehearsal import Rehearsal, stand_in
from steer2edit.stress.runner import PLAIN


def test_every_row_is_a_test() -> None:
    tests = all_tests()
    names = [test.name for test in tests]
    assert len(set(names)) == len(names) == 31
    assert not {PLAIN, STATIC_TOGETHER} & set(names)
    assert [list(GROUPS).index(test.group) for test in tests] == sorted(list(GROUPS).index(t.group) for t in tests)
    for test in tests:
        assert isinstance(test, StressTest)
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", test.name)
        assert test.summary
        assert test.citation
        assert set(test.suites) <= set(SUITES)
        assert "full" in test.suites


def test_choice() -> None:
    tests = [ToyTest("a"), ToyTest("b", suites=["full"]), ToyTest("c")]
    assert [test.name for test in choose_tests(tests, "quick")] == ["a", "c"]
    assert [test.name for test in choose_tests(tests, "full")] == ["a", "b", "c"]
    assert [test.name for test in choose_tests(tests, "quick", ["c", "b"])] == ["b", "c"]
    with pytest.raises(DataError, match=r"there is no stress test 'aa'. Did you mean 'a'\? Known: a, b, c"):
        choose_tests(tests, "quick", ["aa"])


def test_costs_without_a_model() -> None:
    """96 harmful held-out requests under three arms."""
    assert stand_in(StressOptions(), "quick").cost(ToyTest("a").run).replies == 3 * 96
    assert stand_in(StressOptions(limit=5), "quick").cost(ToyTest("a").run).replies == 15


@pytest.fixture(scope="module")
def quick() -> Rehearsal:
    return stand_in(StressOptions(), "quick")


@pytest.mark.parametrize(
    ("name", "replies", "passes"),
    [
        ("role-play", 20 * 3, None),  # the plain replies are remembered
        ("gcg", 3 * (2 + 6) * 3, 2 * 2 * 8 * 27 + 2 * 4 * 2),  # 2 × 2 searches of 8 steps, and the losses of 4 suffixes
        ("prefilling", 20 * 3, 0),
        ("best-of-n", 3 * 20 * 3, 0),
        ("direction-removed", 7 * 20, 0),  # two plain arms, two attacks on both models, one control
        ("edit-recovered", 3 * 20, 20 * 30),
        ("quantised", (2 + 3) * (20 + 12), 0),
        ("merged-back", 3 * (20 + 12), 0),
        ("next-token", 0, 3 * 20 * 3),
        ("components", 7 * 20, None),  # a shuffle, top, rest, 2 + 2 draws
    ],
)
def test_the_quick_suites_costs_by_hand(name: str, replies: int, passes: int | None, quick: Rehearsal) -> None:
    (test,) = choose_tests(all_tests(), "quick", [name])
    cost = quick.cost(test.run)
    assert cost.replies == replies
    assert passes in (None, cost.passes)


def test_every_test_can_be_rehearsed(quick: Rehearsal) -> None:
    costs = {test.name: quick.cost(test.run) for test in choose_tests(all_tests(), "quick")}
    assert all(0 < cost.replies + cost.passes < 2000 for cost in costs.values())


def test_what_is_asked_but_once_is_counted_once(quick: Rehearsal) -> None:
    def again(subject: Subject) -> None:
        for _ in range(2):
            ToyTest("a", attack=str).run(subject)  # the plain requests, which are remembered

    assert quick.cost(again).replies == 0
