"""Which prompts were used for what: figures on prompts that something was made from or chosen on mean nothing."""

import hashlib
import itertools
from collections.abc import Iterable, Mapping

from steer2edit.errors import DataError
from steer2edit.models import Prompt
from steer2edit.steering.examples import prompt_key


def prompt_digests(prompts: Iterable[Prompt]) -> list[str]:
    """A short digest of every different prompt, whatever its case and spacing, sorted."""
    plain = {" ".join(prompt_key(prompt).casefold().split()) for prompt in prompts}
    return sorted({hashlib.sha256(text.encode()).hexdigest()[:16] for text in plain})


def require_no_overlap(uses: Mapping[str, Iterable[str]]) -> None:
    """Require that no prompt has two uses; a DataError names those, and how many prompts they share.

    `uses` are digests of prompts by what they are used for, e.g. `vectors`, `validation`, `held-out`.
    """
    for (one, mine), (other, theirs) in itertools.combinations(uses.items(), 2):
        if shared := len(set(mine) & set(theirs)):
            raise DataError(
                f"{shared} prompts are among both the {one} and the {other} prompts. A prompt may have one use only: "
                "figures on prompts that something was made from or chosen on mean nothing. Take them out of one."
            )
