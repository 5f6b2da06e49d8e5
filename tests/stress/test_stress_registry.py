"""Which tests there are, and which are asked for."""

import re

import pytest
from tiny_stress import ToyTest

from steer2edit.errors import DataError
from steer2edit.stress.findings import GROUPS
from steer2edit.stress.registry import StressTest, all_tests, choose_tests
from steer2edit.stress.run import PLAIN
from steer2edit.stress.scorecard import CONDITIONS


def test_every_row_is_a_test() -> None:
    tests = all_tests()
    names = [test.name for test in tests]
    assert len(set(names)) == len(names) == 25
    assert not {PLAIN, *GROUPS} & set(names) - {"usefulness"}
    assert [list(GROUPS).index(test.group) for test in tests] == sorted(list(GROUPS).index(t.group) for t in tests)
    for test in tests:
        assert isinstance(test, StressTest)
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", test.name)
        assert test.summary
        assert test.citation


def test_every_condition_of_the_contract_has_tests() -> None:
    contract = choose_tests(all_tests())
    assert {test.group for test in contract} == {*CONDITIONS, "usefulness"} - {PLAIN}
    assert [test.name for test in contract] == [
        "held-out-attacks", "best-of-n", "prefilling", "quantised", "fine-tuned", "languages", "other-settings",
        "usefulness",
    ]  # fmt: skip


def test_choice() -> None:
    tests = [ToyTest("a"), ToyTest("b", contract=False), ToyTest("c", group="causal", contract=False)]
    assert [test.name for test in choose_tests(tests)] == ["a"]
    assert [test.name for test in choose_tests(tests, ["c", "b"])] == ["b", "c"]
    assert [test.name for test in choose_tests(tests, ["causal", "a"])] == ["a", "c"]
    with pytest.raises(DataError, match=r"there is no stress test 'causa'. Did you mean 'causal'\?"):
        choose_tests(tests, ["causa"])
