"""The edit of measured effects: tried first, beside the paper's rule, and recommended if it wins."""

import threading
import time
from pathlib import Path

import pytest
import torch
from tiny_search import facts, random_vectors, run, tiny_model, tiny_search

from steer2edit.core import Editing
from steer2edit.editing import convert
from steer2edit.method.hyperparameters import EVERYTHING, GATED_RULES
from steer2edit.models import LanguageModel
from steer2edit.search.generation import measure_generation
from steer2edit.search.run import _KIND, search_results
from steer2edit.search.search import Search, prepare_search
from steer2edit.search.space import SearchSpace
from steer2edit.search.study import SharedStudy, Trial, read_trials
from steer2edit.settings import SearchOptions


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model()


def tried(search: Search) -> list[Trial]:
    return measure_generation(search, [{}], 0)


def test_it_spends_the_drift_budget_with_its_whole_interval() -> None:
    search = tiny_search(effects=True)
    (edit,) = search.edits(tried(search))
    found = search.validation.drift.measure(search.engine, [Editing(edit)])[0].metrics["kl"]
    assert found.value < found.high <= search.goal.largest_cost
    assert found.high == pytest.approx(search.goal.largest_cost, rel=0.11)


def test_it_is_what_convert_makes_by_default_at_another_strength(model: LanguageModel) -> None:
    search = tiny_search(effects=True)
    (trial,) = tried(search)
    (edit,) = search.edits([trial])
    default = convert(model, search.vectors, EVERYTHING, GATED_RULES, force=True)
    assert edit.sites.keys() == default.sites.keys()
    for site, own in edit.sites.items():
        torch.testing.assert_close(own.row, trial.scale * default.sites[site].row)


def test_it_is_the_first_trial_and_measured_in_full(tmp_path: Path) -> None:
    search = tiny_search(effects=True, trials=12, generation=4)
    result = run(search, tmp_path)
    first, *others = result.trials
    assert (first.key, first.parameters, first.complete) == ("0000-000", {}, True)
    assert len(others) == 12  # beside the trials that were asked for
    assert all(trial.parameters for trial in others)
    assert first.label == f"effects {first.hyperparameters} × {first.scale:.3g}"
    assert facts(read_trials(tmp_path / "trials")) == facts(result.trials)
    again = run(search, tmp_path)
    assert facts(again.trials) == facts(result.trials)
    (said,) = [line for line in search_results(search, result)["summary"] if line.startswith("Tried first")]
    assert first.label in said
    assert said.endswith("it is recommended." if result.recommended == first else "more within the budget.")


def test_what_wins_on_validation_is_recommended_and_saved(tmp_path: Path) -> None:
    """With trials of the paper's rule that cannot be sane, only the edit of effects is left."""
    space = SearchSpace(ranges={"rho_attn": (0.02, 0.021, 0.001), "rho_mlp": (0.02, 0.021, 0.001)})
    search = tiny_search(effects=True, trials=2, generation=2, space=space)
    result = run(search, tmp_path)
    assert result.recommended.parameters == {}
    assert result.edit.metadata["rules"]["importance"] == "effect"
    results = search_results(search, result)
    assert results["front"] == ["0000-000"]
    assert any(line.startswith("Recommended: effects ") for line in results["summary"])
    assert result.held_out[-1].label == result.recommended.label


def test_without_effects_the_summary_says_why_it_was_not_tried(model: LanguageModel, tmp_path: Path) -> None:
    options = SearchOptions(behaviour="safety", limit=3, max_new_tokens=2)
    plain = prepare_search(model, random_vectors(model), options)
    assert plain.effects is None
    assert "extract --effects" in plain.no_effects
    assert prepare_search(model, random_vectors(model, effects=True), options).effects is not None
    search = tiny_search(trials=8, generation=4)
    assert "Only the paper's rule was searched: no effects." in search_results(search, run(search, tmp_path))["summary"]


def test_of_two_workers_that_end_at_once_one_looks(tmp_path: Path) -> None:
    looks: list[str] = []

    def study() -> SharedStudy:
        return SharedStudy(tmp_path, _KIND)

    def look(worker: str) -> list[str]:
        looks.append(worker)
        time.sleep(0.5)
        return [worker]

    studies = {worker: study() for worker in "ab"}
    found: dict[str, list[str]] = {}

    def ask(worker: str) -> None:
        found[worker] = studies[worker].once("held_out", lambda: look(worker), key="key")

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(looks) == 1
    assert found == {"a": looks, "b": looks}


def test_a_look_that_was_killed_is_taken_again(tmp_path: Path) -> None:
    study = SharedStudy(tmp_path, _KIND)

    def killed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.once("held_out", killed, key="key")
    assert study.once("held_out", lambda: [1], key="key") == [1]
