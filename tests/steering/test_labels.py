"""Labellers on replies whose class is known."""

from pathlib import Path

import pytest

from steer2edit.errors import DataError, InvalidValueError
from steer2edit.models import Reply
from steer2edit.steering.labels import Candidate, by_callable, by_length, find_labeller

P, N = "positive", "negative"


def reply_of(text: str, length: int = 1, finished: bool = True, reference: str | None = None) -> Candidate:
    return Candidate("q", Reply(text, tuple(range(length)), finished), reference)


def by_reference(text: str, reference: str | None) -> str | None:
    return find_labeller("reference")([reply_of(text, reference=reference)])[0]


class TestRefusal:
    REPLIES = ("I cannot do that.", "Sure!", "", "I'm sorry for the wait. Here it is.")

    def test_strict(self) -> None:
        assert find_labeller("refusal")([reply_of(text) for text in self.REPLIES]) == [P, N, None, N]

    def test_official(self) -> None:
        assert find_labeller("refusal-official")([reply_of(text) for text in self.REPLIES]) == [P, N, None, P]


class TestLength:
    def test_shortest_and_longest_quarter(self) -> None:
        lengths = [5, 1, 8, 3, 4, 7, 2, 6]
        labels = find_labeller("length")([reply_of("x", n) for n in lengths])
        assert labels == [{1: P, 2: P, 7: N, 8: N}.get(n) for n in lengths]

    def test_a_cut_off_reply_is_long_never_short(self) -> None:
        candidates = [reply_of("x", n) for n in (3, 4, 5)] + [reply_of("x", 9, finished=False)]
        assert by_length(candidates) == [P, None, None, N]
        candidates = [reply_of("x", 1, finished=False)] + [reply_of("x", n) for n in (3, 4, 5)]
        assert by_length(candidates) == [None, P, None, N]

    def test_empty_replies_are_left_out(self) -> None:
        candidates = [reply_of("", 0), *(reply_of("x", n) for n in (1, 2, 3, 4))]
        assert by_length(candidates) == [None, P, None, None, N]

    def test_equal_lengths_and_nothing_finished_give_no_label(self) -> None:
        assert by_length([reply_of("x", 3)] * 4) == [None] * 4
        assert by_length([reply_of("x", n, finished=False) for n in (1, 2, 3, 4)]) == [None] * 4
        assert by_length([]) == []


class TestReference:
    @pytest.mark.parametrize(
        ("text", "reference", "wanted"),
        [
            ("Paris", "paris", P),
            ("The answer!", "answer", P),
            ("It is Paris.", "Paris", N),  # the whole reply must be the reference
            ("London", "Paris", N),
            ("First 3, then 4, so 12.", "12", P),
            ("12, but then 13", "12", N),  # the last number counts
            ("It costs $1,234.00", "1234", P),
            ("1234", "1,234", P),
            ("It is -5", "-5", P),
            ("It is 5", "-5", N),
            ("0.5", ".5", P),
            ("no number", "7", N),
            ("", "7", None),
        ],
    )
    def test_table(self, text: str, reference: str, wanted: str | None) -> None:
        assert by_reference(text, reference) == wanted

    def test_number_without_a_leading_zero(self) -> None:
        assert by_reference("It is .5", "0.5") == P

    def test_no_reference(self) -> None:
        with pytest.raises(DataError, match="needs a 'reference' in every row; 'q' has none"):
            by_reference("x", None)


class TestOwnFunction:
    @pytest.fixture(autouse=True)
    def _module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        code = (
            "def shout(prompt, reply):\n"
            "    return None if not reply else 'positive' if reply.isupper() else 'negative'\n"
            "def wrong(prompt, reply):\n    return 'yes'\n"
        )
        (tmp_path / "my_labels_for_the_test.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)

    def test_module_and_function(self) -> None:
        label = find_labeller("my_labels_for_the_test:shout")
        assert label([reply_of("HEY"), reply_of("hey"), reply_of("")]) == [P, N, None]

    def test_it_sees_prompt_and_text(self) -> None:
        seen = []
        by_callable(lambda prompt, text: seen.append((prompt, text)))([reply_of("one"), reply_of("two")])
        assert seen == [("q", "one"), ("q", "two")]

    def test_wrong_result(self) -> None:
        with pytest.raises(DataError, match="must return 'positive', 'negative' or None, got 'yes'"):
            find_labeller("my_labels_for_the_test:wrong")([reply_of("x")])

    @pytest.mark.parametrize("name", ["my_labels_for_the_test:missing", "no_such_module_here:f"])
    def test_not_there(self, name: str) -> None:
        with pytest.raises(InvalidValueError, match=f"cannot import the labeller '{name}'"):
            find_labeller(name)

    @pytest.mark.parametrize("name", [":f", ".relative:f", "my_labels_for_the_test:__doc__"])
    def test_not_a_function_of_a_module(self, name: str) -> None:
        with pytest.raises(InvalidValueError, match="labeller"):
            find_labeller(name)


def test_unknown_labeller() -> None:
    with pytest.raises(InvalidValueError, match=r"'refusl'\. Did you mean 'refusal'\?.*module:function"):
        find_labeller("refusl")
