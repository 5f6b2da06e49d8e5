"""A whole search that takes a second: a random model, random vectors, ten items, four-token replies."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from steer2edit.core import ClassMeans, SiteEffects, SiteMeans, SteeringVectors
from steer2edit.editing import compute_factors
from steer2edit.engines import Engine, RememberingEngine, Request, TransformersEngine
from steer2edit.estimates import Condition
from steer2edit.evaluation import Behaviour, DriftTask
from steer2edit.evaluation.reply_tasks import RefusalTask
from steer2edit.method.hyperparameters import EVERYTHING, GATED_RULES
from steer2edit.method.rule import output_direction
from steer2edit.models import LanguageModel, Reply, Sampling
from steer2edit.search.goal import Budget
from steer2edit.search.run import SearchResult, run_search
from steer2edit.search.search import Search
from steer2edit.search.space import SearchSpace
from steer2edit.search.study import Trial
from steer2edit.settings import SearchOptions
from tiny_chat import tiny_chat_model, tiny_tokenizer

SAMPLING = Sampling(max_new_tokens=4)
MAX_KL = 0.4
ITEMS = 10  # in every set, so that the rungs see 2, 3 and 5 of them


@dataclass(frozen=True)
class SumScorer:
    """A verdict that every change of a random reply may turn."""

    def score(self, prompts: Sequence[object], replies: Sequence[Reply]) -> list[bool | None]:
        return [
            sum(map(ord, reply.text)) % 3 == 0 if reply.text else None
            for _, reply in zip(prompts, replies, strict=True)
        ]


class CountingEngine:
    """Another engine, with a list of everything that it was asked for under an intervention."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.generated: list[tuple[str, int]] = []
        self.scored: list[tuple[tuple[int, ...], int]] = []
        self.calls = 0

    @property
    def model(self) -> LanguageModel:
        return self._engine.model

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
        self.calls += 1
        self.generated += [
            (str(r.prompt), id(r.intervention.edit)) for r in requests if hasattr(r.intervention, "edit")
        ]
        return self._engine.generate(requests, sampling)

    def score(self, responses: Any, interventions: Any, *, kl: bool = True) -> Any:
        self.calls += 1
        self.scored += [(r.ids, id(i.edit)) for i in interventions if hasattr(i, "edit") for r in responses]
        return self._engine.score(responses, interventions, kl=kl)


def tiny_model(seed: int = 0) -> LanguageModel:
    tokenizer = tiny_tokenizer(template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    return tiny_chat_model(seed=seed, tokenizer=tokenizer, num_hidden_layers=2)


def random_vectors(model: LanguageModel, seed: int = 1, *, effects: bool = False) -> SteeringVectors:
    generator = torch.Generator().manual_seed(seed)

    def means(size: int) -> ClassMeans:
        return ClassMeans(torch.randn(size, generator=generator), torch.randn(size, generator=generator))

    sites = {site: SiteMeans(means(p.shape[0]), means(p.shape[1])) for site, p in model.sites.items()}
    if effects:
        parts = {s: [torch.randn(m.input.positive.numel(), generator=generator) for _ in range(3)]
                 for s, m in sites.items()}  # fmt: skip
        along = {s: output_direction(m.steering_vector) for s, m in sites.items()}
        found = {s: SiteEffects(along[s], e, d.abs(), g, 0.9) for s, (e, d, g) in parts.items()}
        sites = {site: replace(own, effects=found[site]) for site, own in sites.items()}
    return SteeringVectors(sites, {"model": model.describe()})


def tiny_behaviour(split: str, items: int = ITEMS, sampling: Sampling = SAMPLING) -> Behaviour:
    harmful = [f"do {split[0]}{i}" for i in range(items)]
    benign = [f"is {split[0]}{i}" for i in range(items)]
    tasks = (RefusalTask("harmful", harmful, sampling, SumScorer()), DriftTask("", benign, sampling))
    return Behaviour("tiny", "harmful_refused", 1, tasks, {"harmful": harmful, "benign": benign})


def tiny_search(
    *,
    engine: Engine | None = None,
    budget: Budget | None = None,
    effects: bool = False,
    space: SearchSpace | None = None,
    vectors_seed: int = 1,
    model_seed: int = 0,
    behaviour: Behaviour | None = None,
    **settings: Any,
) -> Search:
    model = engine.model if engine else tiny_model(model_seed)
    vectors = random_vectors(model, vectors_seed, effects=effects)
    runner = engine or RememberingEngine(TransformersEngine(model))
    defaults = {"trials": 16, "generation": 8, "strengths": (0.02, 0.05)}
    return Search(
        runner, vectors, compute_factors(model, vectors), behaviour or tiny_behaviour("validation"),
        tiny_behaviour("held-out"), budget or Budget({"kl": MAX_KL}), space or SearchSpace(),
        SearchOptions(**{**defaults, **settings}),
        effects=compute_factors(model, vectors, GATED_RULES, force=True).edit(EVERYTHING) if effects else None,
        no_effects="" if effects else "no effects",
    )  # fmt: skip


def with_settings(search: Search, **settings: Any) -> Search:
    return replace(search, options=replace(search.options, **settings))


def silent(text: str, conditions: Sequence[Condition]) -> None:
    """Tell nobody."""


def run(search: Search, out: Path) -> SearchResult:
    return run_search(search, out, silent)


def facts(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Everything that the study keeps of the trials."""
    return [{**trial.to_json(), "replies": {}, "outcomes": {}} for trial in trials]
