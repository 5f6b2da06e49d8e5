"""One configuration in a process of its own, as one would script it: load, convert, merge, generate, judge, compare.

Run by `configurations.py` with a job file; it prints what it found as one JSON line. It imports no more than that
takes.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model_shapes import never_ending, open_model

from steer2edit.artifacts import load_vectors
from steer2edit.core import WeightEdit
from steer2edit.editing import convert, merged
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import (
    EncodedResponse,
    LanguageModel,
    Sampling,
    generate,
    span_log_probabilities,
    token_log_probabilities,
)
from steer2edit.steering.refusal import refusal_phrases


@dataclass(frozen=True)
class Source:
    """Where the model is from."""

    model: str
    dtype: str
    device: str
    shape: str | None

    def open(self) -> LanguageModel:
        """The model, none of whose replies ends by itself."""
        loaded = open_model(self.model, self.dtype, self.device, self.shape)
        never_ending(loaded)
        return loaded


@dataclass(frozen=True)
class Found:
    """What an evaluation of one configuration came to, request by request."""

    replies: list[str]
    refused: list[bool | None]
    nll_increase: list[float]
    kl: list[float]


def evaluated(
    model: LanguageModel, prompts: Sequence[str], new_tokens: int, answers: Sequence[EncodedResponse], edit: WeightEdit
) -> Found:
    """Replies and verdicts under the edit in the weights, and drift on the base's given answers."""
    before = span_log_probabilities(model, answers)
    with merged(model, edit):
        replies = generate(model, prompts, Sampling(max_new_tokens=new_tokens)) if prompts else []
        after = span_log_probabilities(model, answers)
    nll, kl = [], []
    for answer, b, a in zip(answers, before, after, strict=True):
        nll.append(float((token_log_probabilities(b, answer) - token_log_probabilities(a, answer)).mean()))
        kl.append(float((b.exp() * (b - a)).sum(dim=-1).mean()))
    return Found([reply.shown for reply in replies], list(map(refusal_phrases().refuses, replies)), nll, kl)


def main(job: dict[str, Any]) -> dict[str, Any]:
    loaded = Source(**job["source"]).open()
    start = time.time() - job["launched"]
    answers = [EncodedResponse(tuple(ids), begin) for ids, begin in job["answers"]]
    edit = convert(loaded, load_vectors(job["vectors"]), Hyperparameters(**job["hyperparameters"]), force=True)
    return {"start": start, "found": asdict(evaluated(loaded, job["prompts"], job["new_tokens"], answers, edit))}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
