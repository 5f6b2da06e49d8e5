"""Conditions that are measured once in a run folder."""

from collections.abc import Callable, Sequence
from typing import Any

from steer2edit.artifacts.run_folder import RunFolder, damage_explained
from steer2edit.estimates import Condition


def conditions_once(
    folder: RunFolder, name: str, key: str, measure: Callable[[], Sequence[dict[str, Any]]]
) -> list[Condition]:
    """The conditions that `NAME.json` holds under a key; measured and written down if it has none.

    The file keeps the conditions of all keys side by side, in the order they were measured, so that it can be seen how
    often held-out items were looked at.

    Raises:
        ArtifactError: the file is damaged.
    """
    found = folder.once(name, measure, key=key)
    with damage_explained(folder.path / f"{name}.json"):
        return [Condition.from_json(one) for one in found]


def measured(conditions: Sequence[Condition]) -> list[dict[str, Any]]:
    """The conditions as a run folder keeps them."""
    return [condition.to_json() for condition in conditions]
