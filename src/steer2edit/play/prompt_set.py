"""A set of prompts at once: how many each arm refuses, and how long its replies are."""

from collections.abc import Sequence

from steer2edit.errors import InvalidValueError
from steer2edit.estimates import PERCENT, POINTS, Notation
from steer2edit.evaluation.scorers import PhraseScorer
from steer2edit.evaluation.statistics import mean, paired_rate_difference, rate
from steer2edit.evaluation.task import replies_to
from steer2edit.play.session import Session
from steer2edit.play.stage import Stage

_MOST = 200
_TOKENS = Notation(".1f")
_VERDICTS = {True: "refused", False: "answered", None: "unclear"}
Table = tuple[list[str], list[list[str]]]
"""Titles of columns, and rows."""


def ask_all(stage: Stage, session: Session, prompts: Sequence[str]) -> tuple[Table, Table]:
    """Every prompt under every arm, in shared batches.

    Returns:
        For each arm the shares of refusals and answers with 95 % intervals, the difference to the base on the same
        prompts, and the length of replies; for each prompt what every arm did.

    Raises:
        InvalidValueError: there is no prompt, or there are more than a page can wait for.
    """
    if not 1 <= len(prompts) <= _MOST:
        raise InvalidValueError(
            f"a set is 1 to {_MOST} prompts, one in each line, got {len(prompts)}. "
            "More are measured by `steer2edit evaluate --task refusal=FILE`."
        )
    arms = stage.arms(session)
    with stage.engine() as engine:
        replies = replies_to(engine, list(prompts), [arm.intervention for arm in arms], session.sampling)
    refused = [PhraseScorer().score(list(prompts), own) for own in replies]
    rows = [
        [
            arm.label,
            PERCENT.text(rate(own), n=True),
            PERCENT.text(rate([None if one is None else not one for one in own])),
            "reference" if arm is arms[0] else POINTS.text(paired_rate_difference(own, refused[0])),
            _TOKENS.text(mean([float(len(reply.ids)) for reply in said])),
        ]
        for arm, own, said in zip(arms, refused, replies, strict=True)
    ]
    cells = [
        [f"{_VERDICTS[one]}, {len(reply.ids)} tokens" for one, reply in zip(own, said, strict=True)]
        for own, said in zip(refused, replies, strict=True)
    ]
    by_prompt = [list(row) for row in zip(prompts, *cells, strict=True)]
    return (["", "refused", "answered", "refused, less base", "tokens"], rows), (
        ["prompt", *(arm.label for arm in arms)],
        by_prompt,
    )
