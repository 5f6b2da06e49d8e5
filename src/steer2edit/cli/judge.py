"""The judge that the options of a command describe."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steer2edit.evaluation.judge import Judge


def find_judge(
    scorer: str, url: str | None, model: str | None, prompt: Path | None, key_variable: str | None
) -> "Judge | None":
    """The judge that the options describe; `None` if none of them is given.

    Raises:
        InvalidValueError: options of a judge without that scorer, or without endpoint or model.
        DataError: the file of the question cannot be read.
    """
    from steer2edit.errors import InvalidValueError
    from steer2edit.evaluation.judge import Judge
    from steer2edit.evaluation.judge_prompt import REFUSAL_QUESTION, read_template

    if not any((url, model, prompt, key_variable)):
        return None
    if scorer != "judge":
        raise InvalidValueError(f"the options of a judge are given, but the scorer is {scorer!r}: add --scorer judge.")
    if not url or not model:
        raise InvalidValueError("a judge needs an endpoint and a model: give both --judge-url and --judge-model.")
    template = REFUSAL_QUESTION if prompt is None else read_template(prompt)
    return Judge(url, model, template, api_key_variable=key_variable)
