"""The mean input of every site on benign text: what a spared edit leaves alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.core import Site
from steer2edit.errors import DataError, InvalidValueError
from steer2edit.models import EncodedResponse, LanguageModel, Prompt, Sampling, encode_prompts, generate, span_means
from steer2edit.steering.examples import read_examples
from steer2edit.steering.moments import RunningMeans
from steer2edit.steering.overlap import prompt_digests
from steer2edit.steering.presets import safety_prompts

BUILT_IN = "benign"
REPLIES = Sampling(max_new_tokens=24)
_PROMPTS = 96


@dataclass(frozen=True)
class BenignMeans:
    """Mean input of every site over the model's own replies to benign requests.

    Args:
        inputs: x̄ by site, [m], float32, on the CPU.
        metadata: JSON-able facts: where the requests are from, and how many.

    Raises:
        InvalidValueError: a mean is not finite.
    """

    inputs: Mapping[Site, Float[Tensor, " m"]]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for site, mean in self.inputs.items():
            if not bool(torch.isfinite(mean).all()):
                raise InvalidValueError(f"{site}: the benign mean input is not finite. Measure it in a wider dtype.")


def benign_means(model: LanguageModel, source: str | Path = BUILT_IN, *, sampling: Sampling = REPLIES) -> BenignMeans:
    """Mean inputs on the model's greedy replies to benign requests; each reply weighs the same.

    Args:
        model: the base model.
        source: `benign` (the training part of the built-in requests), or a file of prompts.
        sampling: how the replies are generated.

    Raises:
        DataError: a bad file, or the model answers none of the requests.
    """
    answers = benign_answers(model, source, sampling)
    running = RunningMeans(model)
    for batch in span_means(model, [reply for _, reply in answers], description="Measuring benign inputs"):
        running.add(batch)
    inputs = {site: _written_input(running, site, model).float() for site in model.sites}
    digests = prompt_digests(prompt for prompt, _ in answers)
    return BenignMeans(inputs, {"source": str(source), "responses": len(answers), "prompts": digests})


def _written_input(running: RunningMeans, site: Site, model: LanguageModel) -> Float[Tensor, " m"]:
    """x̄ of a site; of an expert, its share of every token: mean input times mean routing weight."""
    sizes = model.sites[site].sizes
    mean = running.input(site)
    return mean if sizes is None else mean * running.usage(site).repeat_interleave(torch.tensor(sizes.widths))


def benign_answers(
    model: LanguageModel, source: str | Path = BUILT_IN, sampling: Sampling = REPLIES
) -> list[tuple[Prompt, EncodedResponse]]:
    """Benign requests with the model's own replies to them; see `benign_means`."""
    if str(source) == BUILT_IN:
        return own_answers(model, safety_prompts("train")[1][:_PROMPTS], sampling)
    return own_answers(model, [example.prompt for example in read_examples(source)], sampling)


def own_answers(
    model: LanguageModel, prompts: Sequence[Prompt], sampling: Sampling = REPLIES
) -> list[tuple[Prompt, EncodedResponse]]:
    """The model's own greedy replies, as exact tokens, with the requests that it does answer.

    Raises:
        DataError: it answers none.
    """
    encoded = encode_prompts(model, prompts, room=sampling.max_new_tokens)
    replies = generate(model, prompts, sampling, description="Answering benign requests")
    answered = [
        (prompt, EncodedResponse((*ids, *reply.ids), len(ids)))
        for prompt, ids, reply in zip(prompts, encoded, replies, strict=True) if reply.ids
    ]  # fmt: skip
    if not answered:
        raise DataError(f"the model answers none of the {len(prompts)} benign requests: there is nothing to measure.")
    return answered
