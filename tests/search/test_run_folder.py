"""A run folder: what a kill leaves at every place, what does not belong to it, and a storage that workers share."""

import fcntl
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from tiny_search import CountingEngine, facts, run, tiny_behaviour, tiny_model, tiny_search

from steer2edit.engines import TransformersEngine
from steer2edit.errors import ArtifactError, BudgetError, InvalidValueError, MismatchError
from steer2edit.models import Sampling
from steer2edit.search.generation import measure_generation
from steer2edit.search.goal import Budget
from steer2edit.search.run import SearchResult
from steer2edit.search.search import Search
from steer2edit.search.space import SearchSpace, propose
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


def test_a_storage_of_another_search_is_refused(tmp_path: Path) -> None:
    storage = str(tmp_path / "shared")
    run(again(seed=1, trials=4, storage=storage), tmp_path / "other")
    with pytest.raises(MismatchError, match=r"shared belongs to another search\. It differs in: seed \(1, now 0\)"):
        run(again(storage=storage), tmp_path / "run")


def test_one_process_at_a_time(copy: Path) -> None:
    with (copy / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match=r"another process is searching in .*--storage"):
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


def test_two_workers_share_a_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees the other's trials and repeats none; both end with the same trials, front, edit and look."""
    storage = str(tmp_path / "shared")
    seen: list[list[Any]] = []

    def spying(strategy: Any, space: SearchSpace, history: Any, *others: Any) -> Any:
        seen.append([trial.params for trial in history])
        return propose(strategy, space, history, *others)

    monkeypatch.setattr("steer2edit.search.run.propose", spying)

    def worker(name: str, trials: int) -> tuple[SearchResult, CountingEngine]:
        engine = CountingEngine(TransformersEngine(tiny_model()))
        search = again(
            engine=engine, storage=storage, worker=name, trials=trials, generation=4, budget=Budget({"kl": 2.0})
        )
        return run(search, tmp_path / name), engine

    worker("a", 4)
    b, _ = worker("b", 8)
    a, _ = worker("a", 12)
    assert seen == [[], [t.parameters for t in a.trials[:4]], [t.parameters for t in a.trials[:8]]]
    assert [trial.worker for trial in a.trials] == ["a"] * 4 + ["b"] * 4 + ["a"] * 4  # `trials` counts everybody's
    again_b, engine = worker("b", 12)
    assert len(seen) == 3
    assert engine.calls == 0  # no second look at the held-out items, no second sweep
    assert facts(again_b.trials) == facts(a.trials)
    assert [trial.key for trial in again_b.front] == [trial.key for trial in a.front]
    assert [c.to_json() for c in again_b.held_out] == [c.to_json() for c in a.held_out]
    name = "edit/adapter_model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    files = {path.name for path in (tmp_path / "shared" / "trials").iterdir()}
    assert files == {"a-0000.json", "a-0001.json", "b-0000.json"}
    assert [t.record for t in a.trials] == [
        f"{w}-{g:04d}-{i:03d}" for w, g in (("a", 0), ("b", 0), ("a", 1)) for i in range(4)
    ]
    assert len({tuple(sorted(trial.parameters.items())) for trial in a.trials}) == 12
    assert facts(b.trials) == facts(a.trials[:8])


def test_trials_that_come_after_the_look_do_not_change_it(tmp_path: Path) -> None:
    """Two workers in their last generation: who ends first says which trials are chosen from."""
    shared: dict[str, Any] = {"storage": str(tmp_path / "shared"), "generation": 4, "budget": Budget({"kl": 2.0})}
    run(again(**shared, worker="a", trials=4), tmp_path / "a")
    measured: list[SearchResult] = []

    def late(search: Search, *arguments: Any, **named: Any) -> Any:
        """While `a` measures its last generation, `b` does, and takes the look."""
        made = measure_generation(search, *arguments, **named)
        if search.options.worker == "a" and not measured:
            measured.append(run(again(**shared, worker="b", trials=8), tmp_path / "b"))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steer2edit.search.run.measure_generation", late)
        a = run(again(**shared, worker="a", trials=8), tmp_path / "a")
    (b,) = measured
    assert [trial.worker for trial in b.trials] == ["a"] * 4 + ["b"] * 4
    assert facts(a.trials) == facts(b.trials)
    assert [c.to_json() for c in a.held_out] == [c.to_json() for c in b.held_out]


def test_a_worker_needs_a_name_and_a_folder_of_its_own(tmp_path: Path) -> None:
    storage = tmp_path / "shared"
    run(again(storage=str(storage), trials=4), tmp_path / "one")
    with FileLock(storage / ".main.lock"), pytest.raises(MismatchError, match=r"the worker 'main' of .*--worker"):
        run(again(storage=str(storage), trials=4), tmp_path / "two")
    with pytest.raises(InvalidValueError, match="--out is a folder of each worker, and --storage of all"):
        run(again(storage=str(storage), trials=4), storage)


def test_files_tell_their_worker(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = run(again(trials=4, worker="gpu-0", budget=Budget({"kl": 2.0})), out)
    assert facts(read_trials(out / "trials")) == facts(first.trials)
    assert {trial.worker for trial in read_trials(out / "trials")} == {"gpu-0"}


def test_a_storage_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"--storage is a folder .* got 'sqlite:///study\.db'"):
        again(storage="sqlite:///study.db")
