"""Items of a behaviour from the user's own data, divided into a validation and a held-out part."""

from collections.abc import Mapping

from steer2edit.errors import DataError, did_you_mean
from steer2edit.evaluation import formats
from steer2edit.evaluation.sources import divided
from steer2edit.steering.rows import Split, read_table

Questions = list[tuple[str, str, str]]
"""(question, true answer, false answer)."""


def check_sets(data: Mapping[str, str], known: tuple[str, ...], behaviour: str) -> None:
    """Refuse data for a set that the behaviour does not have.

    Raises:
        DataError: as said; it names the sets there are.
    """
    for name in data:
        if name not in known:
            raise DataError(f"{behaviour} has no set {name!r} to give data for. {did_you_mean(name, known)}")


def own_requests(source: str, split: Split, seed: int) -> list[str]:
    """Requests of one part of the user's data, in any of the published formats."""
    return formats.plain_requests(divided(read_table(source), split, seed))


def own_questions(source: str, split: Split, seed: int) -> Questions:
    """Questions with the best true answer and the first false one; TruthfulQA's columns, or a contrast file's.

    A contrast file has `prompt`, `positive` (true) and `negative` (false).
    """
    table = divided(read_table(source), split, seed)
    if all(row.get("positive") is not None and row.get("negative") is not None for row in table):
        return [(row.text("prompt"), row.text("positive"), row.text("negative")) for row in table]
    return [(q.question, q.best, q.false_to_best[0]) for q in formats.truthful_questions(table)]
