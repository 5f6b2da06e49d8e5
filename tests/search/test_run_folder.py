"""A run folder: what a kill leaves at every place, and what does not belong to it."""

import fcntl
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_search import CountingEngine, facts, run, tiny_behaviour, tiny_model, tiny_search

from steer2edit.engines import TransformersEngine
from steer2edit.errors import ArtifactError, BudgetError, MismatchError
from steer2edit.models import Sampling
from steer2edit.search.goal import Budget
from steer2edit.search.run import SearchResult
from steer2edit.search.search import Search
from steer2edit.search.space import SearchSpace
from steer2edit.search.study import read_trials


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchResult]:
    """A finished search of two generations; nobody changes it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, run(tiny_search(trials=20, generation=8), out)


@pytest.fixture
def copy(finished: tuple[Path, SearchResult], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def again(**settings: Any) -> Search:
    return tiny_search(**{"trials": 20, "generation": 8, **settings})


def idle() -> tuple[Search, CountingEngine]:
    """The same search, with an engine that tells whether it was asked for anything."""
    engine = CountingEngine(TransformersEngine(tiny_model()))
    return again(engine=engine), engine


def test_finished_search(finished: tuple[Path, SearchResult]) -> None:
    out, result = finished
    assert [trial.key for trial in result.trials] == [
        *(f"0000-{i:03d}" for i in range(16)),
        *(f"0001-{i:03d}" for i in range(4)),
    ]
    assert facts(read_trials(out / "trials")) == facts(result.trials)
    assert result.recommended == result.front[-1]
    assert (out / "edit" / "adapter_config.json").is_file()


def test_a_second_run_does_nothing_again(copy: Path, finished: tuple[Path, SearchResult]) -> None:
    search, engine = idle()
    result = run(search, copy)
    assert engine.calls == 0
    assert facts(result.trials) == facts(finished[1].trials)
    assert [c.to_json() for c in result.held_out] == [c.to_json() for c in finished[1].held_out]
    assert result.comparison == finished[1].comparison


def test_other_strengths_are_measured(copy: Path, finished: tuple[Path, SearchResult]) -> None:
    """Trials are kept, the sweep is another one, on validation and on held-out items."""
    result = run(again(strengths=(0.01,)), copy)
    assert [c.parameters["strength"] for c in result.steering] == [0.01]
    assert [c.parameters["strength"] for c in result.held_out if c.kind == "steering"] == [0.01]
    assert facts(result.trials) == facts(finished[1].trials)
    back = run(again(), copy)
    assert [c.parameters["strength"] for c in back.held_out if c.kind == "steering"] == [0.02, 0.05]


def scratch(out: Path) -> None:
    """Half-written files, and an edit that was moved away and not yet replaced."""
    (out / "trials" / ".main-0002.json-0123abcd.partial").write_text('{"schema')
    (out / ".steering.json-0123abcd.partial").write_text("{")
    (out / ".edit-0123abcd.partial").mkdir()
    (out / "edit").rename(out / ".edit-0123abcd.replaced")


def no_held_out(out: Path) -> None:
    (out / "held_out.json").unlink()
    shutil.rmtree(out / "edit")


def no_second_generation(out: Path) -> None:
    """Killed while the second generation was measured."""
    (out / "trials" / "main-0001.json").unlink()
    no_held_out(out)


KILLS = [scratch, no_held_out, no_second_generation]


@pytest.mark.parametrize("kill", KILLS)
def test_goes_on_after_a_kill(kill: Callable[[Path], None], copy: Path, finished: tuple[Path, SearchResult]) -> None:
    kill(copy)
    result = run(again(), copy)
    out, expected = finished
    assert facts(result.trials) == facts(expected.trials)
    assert [c.to_json() for c in result.held_out] == [c.to_json() for c in expected.held_out]
    name = "adapter_model.safetensors"
    assert (copy / "edit" / name).read_bytes() == (out / "edit" / name).read_bytes()
    kept = {".lock", "edit", "held_out.json", "steer2edit.json", "steering.json", "trials"}
    assert {path.name for path in copy.iterdir()} == kept
    assert len(list((copy / "trials").iterdir())) == 2


def test_killed_before_the_manifest(tmp_path: Path, finished: tuple[Path, SearchResult]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").touch()
    (out / ".steer2edit.json-0123abcd.partial").write_text("{")
    assert facts(run(again(), out).trials) == facts(finished[1].trials)


def test_extended(copy: Path, finished: tuple[Path, SearchResult]) -> None:
    result = run(again(trials=28), copy)
    assert facts(result.trials[:20]) == facts(finished[1].trials)
    assert [trial.generation for trial in result.trials[20:]] == [2] * 8
    points = [tuple(sorted(trial.parameters.items())) for trial in result.trials]
    assert len(set(points)) == 28
    fewer = run(again(trials=4), copy)  # nothing to do, nothing lost
    assert facts(fewer.trials) == facts(result.trials)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model_seed": 1}, "model ("),
        ({"vectors_seed": 2}, "vectors ("),
        ({"seed": 1}, r"seed \(0, now 1\)"),
        ({"generation": 4}, r"generation \(8, now 4\)"),
        ({"strategy": "random"}, r"strategy \(tpe, now random\)"),
        ({"budget": Budget({"kl": 0.3})}, "budget ("),
        ({"space": SearchSpace(blocks=("mlp",))}, "space ("),
        ({"behaviour": tiny_behaviour("validation", items=9)}, "items ("),
        ({"behaviour": tiny_behaviour("validation", sampling=Sampling(max_new_tokens=5))}, "replies ("),
    ],
)
def test_another_search_is_refused(changed: dict[str, Any], named: str, copy: Path) -> None:
    pattern = named if "\\" in named else named.replace("(", r"\(")
    before = sorted((path, path.stat().st_mtime_ns) for path in copy.rglob("*.json"))
    with pytest.raises(MismatchError, match=rf"belongs to another search.*differs in: .*{pattern}"):
        run(again(**changed), copy)
    assert sorted((path, path.stat().st_mtime_ns) for path in copy.rglob("*.json")) == before


def test_another_behaviour_is_refused(copy: Path) -> None:
    search = again(behaviour=replace(tiny_behaviour("validation"), name="other"))
    with pytest.raises(MismatchError, match=r"behaviour \(tiny, now other\)"):
        run(search, copy)


def test_one_process_at_a_time(copy: Path) -> None:
    with (copy / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match=r"another process is searching in .*--out"):
            run(again(), copy)
    run(again(), copy)


def test_foreign_places(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(ArtifactError, match="holds something that is no search"):
        run(again(), folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    with pytest.raises(ArtifactError, match="is a file, and a run folder is to be there"):
        run(again(), folder / "thesis.tex")
    with pytest.raises(ArtifactError, match="cannot write in"):
        run(again(), folder / "thesis.tex" / "run")


def test_an_edit_is_no_run_folder(copy: Path) -> None:
    with pytest.raises(ArtifactError, match=r"steer2edit\.json cannot be read|is not the folder of a search"):
        run(again(), copy / "edit")
    assert not (copy / "edit" / "trials").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ArtifactError, match="cannot write in"):
            run(again(), tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


def test_no_room_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ArtifactError, match=r"cannot write in .*: Permission denied\. Choose another --out"):
        run(again(), tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "trials/main-0001.json",
            '{"schema_version": 1, "trials": [{"generation"',
            "does not hold what a run writes there",
        ),
        (
            "trials/main-0001.json",
            '{"schema_version": 1, "trials": [{"generation": 1}]}',
            "does not hold what a run writes there",
        ),
        ("trials/main-0001.json", '{"schema_version": 9, "trials": []}', "schema version 9"),
        ("trials/main-0001.json", "[]", "does not hold what a run writes there"),
        ("steer2edit.json", "{", "cannot be read"),
        ("steer2edit.json", '{"kind": "search", "schema_version": 1}', "cannot be read"),
        ("steer2edit.json", '{"kind": "search", "schema_version": 1, "identity": 3}', "cannot be read"),
        ("steer2edit.json", '{"kind": "edit", "schema_version": 1}', "is not the folder of a search"),
        ("steer2edit.json", '{"kind": "search", "schema_version": 2}', "is not the folder of a search"),
        ("steering.json", "{", "does not hold what a run writes there"),
        ("held_out.json", "nonsense", "does not hold what a run writes there"),
    ],
)
def test_damaged_files(name: str, content: str, message: str, copy: Path) -> None:
    (copy / name).write_text(content)
    with pytest.raises(ArtifactError, match=message):
        run(again(), copy)


def test_a_budget_no_trial_meets_says_which_came_closest(tmp_path: Path) -> None:
    impossible = Budget({"kl": 0.4, "harmful_refused": -1.0})
    with pytest.raises(BudgetError) as caught:
        run(again(budget=impossible, trials=4), tmp_path / "run")
    trials = read_trials(tmp_path / "run" / "trials")
    assert len(trials) == 4  # they stay
    closest = min((t for t in trials if t.complete), key=lambda t: impossible.violation(t.metrics))
    message = str(caught.value)
    assert "none of 4 trials keeps the budget (kl <= 0.4, harmful_refused <= -1)" in message
    assert (
        f"Closest came {closest.hyperparameters}: harmful_refused {closest.metrics['harmful_refused'].value:.3f}"
        in message
    )
    assert f"kl {closest.metrics['kl'].value:.3f}" in message
    assert "Allow more, or ask for more --trials" in message
    with pytest.raises(BudgetError, match="none of 6 trials"):
        run(again(budget=impossible, trials=6), tmp_path / "run")


def test_nothing_sane(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="none of 4 trials passed the sanity filter"):
        run(again(budget=Budget({"kl": 10000.0}), trials=4), tmp_path / "run")
