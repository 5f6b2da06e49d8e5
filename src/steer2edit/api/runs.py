"""What takes minutes or more, in a folder that it goes on in: searches and stress tests."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steer2edit.api import showing
from steer2edit.api.edit import Edit
from steer2edit.api.keywords import public
from steer2edit.api.results import Results
from steer2edit.artifacts import load_edit
from steer2edit.core import SteeringVectors, WeightEdit
from steer2edit.engines import TransformersEngine
from steer2edit.estimates import Condition
from steer2edit.models import LanguageModel
from steer2edit.recipes.making import refit as make_anew
from steer2edit.recipes.run import search_and_report
from steer2edit.search.search import prepare_search
from steer2edit.settings import Accepting, RefitOptions, SearchOptions, StressOptions
from steer2edit.tables import frame, text_table

if TYPE_CHECKING:
    import pandas

    from steer2edit.stress.scorecard import Scorecard


@public
def search(
    model: LanguageModel,
    vectors: SteeringVectors,
    behaviour: str | None = None,
    *,
    out: Path | str | None = None,
    options: SearchOptions,
    accepting: Accepting,
) -> Results:
    """Find the edit with most of a behaviour within a budget of drift, on validation items.

    Args:
        model: the base model.
        vectors: of this model.
        behaviour: a behaviour, its folder, or a contrast file; by default what the vectors are of.
        out: run folder, in which it goes on if it was stopped, with report.html and edit/; by default none is left.

    Raises:
        DataError: unknown behaviour or malformed data.
        BudgetError: nothing that was tried keeps the budget.
        NoiseError: the diagnosis calls the vectors noise.
    """
    chosen = replace(options, behaviour=behaviour)
    with _folder(out) as folder:
        prepared = prepare_search(model, vectors, chosen, accepting=accepting)
        found = search_and_report(prepared, folder, lambda text, conditions: None)
        edit = Edit.of(load_edit(folder / "edit"), model)
    conditions = tuple(Condition.from_json(one) for one in found["held_out"]["conditions"])
    goal = found["attribute"], found["direction"]
    return Results(conditions, found["behaviour"], found["prompts"], goal, edit, tuple(found["summary"]))


@public
def refit(model: LanguageModel, edit: WeightEdit, options: RefitOptions) -> Results:
    """Make an edit anew for a model whose weights have changed, after a fine-tune say, from the edit's own recipe.

    Args:
        model: as it is now.
        edit: whose contrast, settings and drift are used again; nothing is searched.

    Raises:
        DataError: the edit does not say what its vectors are made from.
        MismatchError: the model has other sites or shapes than the edit.
        NoiseError: the diagnosis calls the vectors noise.
    """
    made, conditions, prompts = make_anew(model, edit, options)
    return Results(tuple(conditions), "refit", prompts, edit=Edit.of(made, model))


@dataclass(frozen=True, repr=False)
class StressResults:
    """What `stress` found.

    Args:
        scorecard: every line, with what it came to (docs/stress.md).
    """

    scorecard: "Scorecard"

    @property
    def verdict(self) -> str:
        """In a sentence."""
        return self.scorecard.verdict.sentence

    @property
    def contract(self) -> dict[str, str]:
        """By condition, whether the edit's gain holds."""
        return {condition.title: condition.words for condition in self.scorecard.contract.conditions}

    def to_pandas(self) -> "pandas.DataFrame":
        """A row for each line of the scorecard; needs pandas."""
        return frame(self._lines())

    def __repr__(self) -> str:
        rows = [[f"{row['test']}: {row['line']}", row["outcome"]] for row in self._lines()]
        return "\n".join([self.verdict, *self.scorecard.verdict.reasons, *text_table(("", "outcome"), rows, 80)])

    def _repr_html_(self) -> str:
        rows = [[f"{row['test']}: {row['line']}", row["outcome"], row["sentence"]] for row in self._lines()]
        said = "\n".join([self.verdict, *self.scorecard.verdict.reasons])
        return showing.page(said, showing.table(("", "outcome", "found"), rows))

    def _lines(self) -> list[dict[str, Any]]:
        return [
            {"test": test.name, "line": line.name, "metric": line.metric, "outcome": line.outcome,
             "sentence": line.sentence, **{arm: one.value for arm, one in line.arms.items()}}
            for test in (self.scorecard.plain, *self.scorecard.tests)
            for line in test.lines
        ]  # fmt: skip


@public
def stress(
    model: LanguageModel,
    edit: WeightEdit,
    vectors: SteeringVectors | None = None,
    *,
    options: StressOptions,
    out: Path | str | None = None,
    only: Sequence[str] = (),
) -> StressResults:
    """State the contract of an edit: what is left of its gain under attack, in 4 bits, after a fine-tune.

    Args:
        model: the base model.
        edit: what is tested.
        vectors: that it was made from, to compare it with steering at equal drift.
        out: run folder, in which it goes on if it was stopped, with report.html; by default none is left.
        only: tests in place of the contract, by name or by group; `steer2edit stress --list` shows them.

    Raises:
        InvalidValueError: an option is unknown or out of range.
        DataError: a file is malformed, or a prompt was seen by the vectors.
    """
    from steer2edit.report import write_stress_page
    from steer2edit.stress.given import StressInput
    from steer2edit.stress.registry import all_tests, choose_tests
    from steer2edit.stress.run import run_stress

    tests = choose_tests(all_tests(), list(only))
    given = StressInput(TransformersEngine(model), edit, options, vectors)
    with _folder(out) as folder:
        found = run_stress(given, tests, folder, lambda text: None, others=all_tests())
        write_stress_page(folder)
    return StressResults(found)


@contextmanager
def _folder(out: Path | str | None) -> Iterator[Path]:
    """The folder that was asked for, or one that is gone afterwards."""
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch) / "run"
