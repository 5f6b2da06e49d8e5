"""Rows for tasks: parts of the user's data, and the sets that come with the package."""

import random
from dataclasses import replace
from importlib import resources

from steer2edit.errors import DataError, InvalidValueError
from steer2edit.steering.rows import Split, Table, read_table

_VALIDATION_SHARE = 0.4


def divided(table: Table, split: Split, seed: int) -> Table:
    """By the column `split` if there is one; else 40 % of the rows for validation, the rest held out, at random."""
    if any(row.get("split") is not None for row in table):
        return table.split(split)
    if split not in ("validation", "held_out"):
        raise InvalidValueError(f"data without a column split has validation and held_out parts only, got {split!r}.")
    rows = list(table.rows)
    random.Random(seed).shuffle(rows)
    border = round(_VALIDATION_SHARE * len(rows))
    own = rows[:border] if split == "validation" else rows[border:]
    if not own:
        raise DataError(f"{table.where} has {len(rows)} rows, too few for a validation and a held-out part.")
    return replace(table, rows=tuple(own))


def built_in_table(name: str) -> Table:
    """A set that comes with the package: `sets/{name}.jsonl`."""
    with resources.as_file(resources.files("steer2edit.evaluation").joinpath(f"sets/{name}.jsonl")) as path:
        return read_table(path, name=name)
