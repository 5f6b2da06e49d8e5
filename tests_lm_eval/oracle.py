"""The same measurements without the harness and without hooks: plain forward passes, one item at a time."""

import json
from pathlib import Path
from typing import Any

import torch

from steer2edit.models import LanguageModel

TASKS = Path(__file__).parent / "tasks"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TASKS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def log_likelihood(model: LanguageModel, context: str, continuation: str) -> float:
    """log p(continuation | context), summed over the tokens behind the context's."""
    start = len(model.tokenizer(context)["input_ids"])
    ids = torch.tensor([model.tokenizer(context + continuation)["input_ids"]])
    with torch.inference_mode():
        log_probabilities = model.network(input_ids=ids).logits[0].double().log_softmax(-1)
    return sum(log_probabilities[t - 1, ids[0, t]].item() for t in range(start, ids.shape[1]))


def choices_right(model: LanguageModel) -> tuple[list[bool], list[bool]]:
    """Per question: whether the true choice has the highest log-likelihood, and the highest per character."""
    plain, by_length = [], []
    for row in rows("capitals"):
        context = f"Question: What is the capital of {row['country']}?\nAnswer:"
        scores = [log_likelihood(model, context, f" {choice}") for choice in row["choices"]]
        normalised = [score / len(choice) for score, choice in zip(scores, row["choices"], strict=True)]
        plain.append(scores.index(max(scores)) == row["answer"])
        by_length.append(normalised.index(max(normalised)) == row["answer"])
    return plain, by_length


def continuation(model: LanguageModel, context: str, tokens: int, stops: tuple[str, ...] = (",", "\n")) -> str:
    """Greedy text, token by token without a cache, up to the first stop."""
    ids = model.tokenizer(context)["input_ids"]
    made: list[int] = []
    with torch.inference_mode():
        for _ in range(tokens):
            token = model.network(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax().item()
            if token == model.tokenizer.eos_token_id:
                break
            made.append(token)
    text = model.tokenizer.decode(made, skip_special_tokens=True)
    for stop in stops:
        text = text.split(stop)[0]
    return text.strip()
