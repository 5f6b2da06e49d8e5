"""What the harness bridge says without the harness, and before it is asked. The harness itself: `make test-lm-eval`."""

import sys

import pytest

from families import tiny_model
from steer2edit.errors import DataError, InvalidValueError, ModelError
from steer2edit.evaluation.harness import harness_results, require_known
from tiny_chat import tiny_chat_model


@pytest.mark.parametrize("part", ["lm_eval", "lm_eval.models.huggingface"])
def test_not_installed(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, part, None)  # also where it is installed
    with pytest.raises(InvalidValueError, match=r"not installed.*pip install steer2edit\[lm-eval\]"):
        harness_results(tiny_chat_model(), ["hellaswag"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tasks": []}, r"at least one name, got \[\]"),
        ({"tasks": "hellaswag"}, "list of at least one name, got 'hellaswag'"),
        ({"limit": 0}, "limit must be >= 1, got 0"),
    ],
)
def test_bad_settings(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidValueError, match=said):
        harness_results(tiny_chat_model(), **{"tasks": ["hellaswag"], **arguments})


def test_no_tokenizer() -> None:
    with pytest.raises(ModelError, match="without a tokenizer"):
        harness_results(tiny_model(), ["hellaswag"])


class TestUnknownTask:
    KNOWN = ("arc_easy", "gsm8k", "hellaswag", "own_task")

    def test_known(self) -> None:
        require_known("gsm8k", self.KNOWN)

    def test_suggests_the_nearest(self) -> None:
        with pytest.raises(DataError, match=r"no task 'helaswag'\. Did you mean 'hellaswag'\?.*the 4 it knows"):
            require_known("helaswag", self.KNOWN)
