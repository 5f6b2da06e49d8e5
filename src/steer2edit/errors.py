"""Exceptions a user may see.

Every message names the offending value, the constraint it broke and what to do about it. The command line
prints these as one message without a traceback; anything else that escapes is a bug.
"""

import difflib
from collections.abc import Iterable


class Steer2EditError(Exception):
    """Base class of every error that is the user's to resolve."""


class InvalidValueError(Steer2EditError, ValueError):
    """An argument is outside its range, or a tensor has the wrong shape or non-finite entries."""


class DataError(Steer2EditError, ValueError):
    """A data file or contrast set is malformed, empty, or inconsistent."""


class ModelError(Steer2EditError, ValueError):
    """A model or tokenizer cannot be found, loaded, or used for what was asked."""


class LayoutError(ModelError):
    """No layout rule covers every residual writer of a model."""


class MismatchError(Steer2EditError, ValueError):
    """An artifact belongs to another model, another shape, or lacks sites the model has."""


class ArtifactError(Steer2EditError, ValueError):
    """A file is not what it says it is, is damaged, or cannot be written where it was asked to."""


class BudgetError(Steer2EditError, ValueError):
    """Nothing that was tried keeps to the budget."""


class NoiseError(Steer2EditError, ValueError):
    """The diagnosis calls the steering vectors noise."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Sentence that lists the known names, nearest first: `Did you mean 'safety'? Known: ...`."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    suggestion = f"Did you mean {near[0]!r}? " if near else ""
    return f"{suggestion}Known: {', '.join(names)}."
