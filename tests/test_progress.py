"""Progress that is no bar: a line now and then, and what a step within a step looks like."""

import sys
from typing import Any

import pytest

from steer2edit import progress
from steer2edit.models import Sampling, generate
from steer2edit.progress import show_progress, step
from tiny_chat import tiny_chat_model


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    clock = iter(range(0, 1000, 20))  # every look at the clock is 20 s later
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with show_progress(), step("Trials", 4) as trial, step("Generating", 10) as advance:
        trial(1)
        advance(5)
    lines = capsys.readouterr().err.splitlines()
    # 60 s: Trials began at 20 s, so 40 s for one of four, and 120 s for the other three
    assert lines == ["Trials 1 of 4, Generating 0 of 10; about 2 min left"]


def test_nothing_is_shown_where_nobody_asked(capsys: Any) -> None:
    with step("Generating", 3) as advance:
        advance(3)
    with show_progress(piped=False), step("Generating", 3) as advance:
        advance(3)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_progress_moves_by_tokens_and_ends_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen:
        tasks = ()

        def __init__(self) -> None:
            self.moves, self.total = list[float](), 0.0

        def add_task(self, description: str, total: int) -> int:
            return 0

        def advance(self, task: int, count: float) -> None:
            self.moves.append(count)

        def remove_task(self, task: int) -> None:
            self.total = sum(self.moves)

    seen = Seen()
    token = progress._shown.set(seen)
    try:
        generate(tiny_chat_model(), ["one", "two words", "three of them"], Sampling(max_new_tokens=6))
    finally:
        progress._shown.reset(token)
    assert seen.total == pytest.approx(3)
    assert len(seen.moves) > 2  # within the one batch


def test_a_notebook_has_one_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(progress, "_notebook", lambda: object())
    monkeypatch.setattr(progress, "_cell", lambda: written.append)
    clock = iter(range(1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with show_progress(piped=False), show_progress(), step("Generating", 2) as advance:
        advance(1)
        advance(1)
    assert [text.split(";")[0] for text in written] == ["Generating 1 of 2", "Generating 2 of 2", ""]
    assert "IPython" not in sys.modules
