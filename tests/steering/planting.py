"""Contrast sets with a difference that is known: random text with random labels, and a direction planted or not."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from steer2edit.core import Site
from steer2edit.models import LanguageModel, encode_responses
from steer2edit.steering.contrast import Contrast, ContrastSet

_WORDS = ("bread", "water", "salt", "hour", "time", "joke", "flour", "oven", "wait", "tell", "one", "two", "the", "is")


def random_text(generator: random.Random, shortest: int, longest: int) -> str:
    return " ".join(generator.choices(_WORDS, k=generator.randint(shortest, longest)))


def random_contrast(train: int, validation: int, seed: int = 0) -> ContrastSet:
    """Every class has `train` and `validation` responses; both classes are drawn from the same distribution."""
    generator = random.Random(seed)

    def pairs(count: int) -> tuple[tuple[str, str], ...]:
        return tuple((random_text(generator, 2, 6), random_text(generator, 1, 9)) for _ in range(count))

    parts = {
        "train": Contrast(pairs(train), pairs(train)),
        "validation": Contrast(pairs(validation), pairs(validation)),
    }
    return ContrastSet("random", parts, {})


@contextmanager
def planted(model: LanguageModel, contrast: ContrastSet, site: Site, direction: torch.Tensor) -> Iterator[None]:
    """Add `direction` to the site's input wherever the model reads a positive response of the contrast set."""
    positive = [pair for part in contrast.parts.values() for pair in part.positive]
    known = {response.ids for response in encode_responses(model, positive)}
    rows: list[float] = []

    def read(module, args, kwargs):
        lengths = kwargs["attention_mask"].sum(dim=1).tolist()
        texts = [tuple(ids[:length]) for ids, length in zip(kwargs["input_ids"].tolist(), lengths, strict=True)]
        rows[:] = [float(text in known) for text in texts]

    def plant(module, args):
        return (args[0] + torch.tensor(rows)[:, None, None] * direction,)

    handles = [
        model.network.base_model.register_forward_pre_hook(read, with_kwargs=True),
        model.sites[site].module.register_forward_pre_hook(plant),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
