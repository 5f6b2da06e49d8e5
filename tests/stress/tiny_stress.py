"""A tiny model with vectors and edits, and toy tests to run on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from steer2edit.core import SteeringVectors, WeightEdit
from steer2edit.core.vectors import ClassMeans, SiteMeans
from steer2edit.editing import convert
from steer2edit.engines import TransformersEngine
from steer2edit.errors import Steer2EditError
from steer2edit.evaluation.task import replies_to
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import LanguageModel
from steer2edit.settings import StressOptions
from steer2edit.stress.findings import Finding, Group, StressResult
from steer2edit.stress.given import StressInput
from steer2edit.stress.registry import StressTest
from steer2edit.stress.subject import Subject
from tiny_chat import tiny_chat_model

OPTIONS = StressOptions(limit=3, max_new_tokens=2)


def tiny_model(seed: int = 0) -> LanguageModel:
    return tiny_chat_model(seed=seed, num_hidden_layers=2)


def random_vectors(model: LanguageModel, seed: int = 1) -> SteeringVectors:
    generator = torch.Generator().manual_seed(seed)

    def means(size: int) -> ClassMeans:
        return ClassMeans(torch.randn(size, generator=generator), torch.randn(size, generator=generator))

    sites = {site: SiteMeans(means(p.shape[0]), means(p.shape[1])) for site, p in model.sites.items()}
    return SteeringVectors(sites, {"model": model.describe()})


def tiny_edit(model: LanguageModel, vectors: SteeringVectors) -> WeightEdit:
    return convert(model, vectors, Hyperparameters(rho_attn=0.3, rho_mlp=0.3, alpha=0.3))


def tiny_input(strength: float = 0.05, *, options: StressOptions = OPTIONS, steering: bool = False) -> StressInput:
    """An edit scaled by a strength: 0.05 is mild, 0 nothing, 20 too much."""
    model = tiny_model()
    vectors = random_vectors(model)
    edit = tiny_edit(model, vectors).scaled(strength)
    return StressInput(TransformersEngine(model), edit, options, vectors if steering else None)


class ToyTest(StressTest):
    """Draws replies and random numbers; tells whether they begin with a letter."""

    error: Exception | None
    attack: Callable[[str], str]
    ran: list[str]

    def __init__(
        self,
        name: str,
        group: Group = "static",
        contract: bool = True,
        error: Exception | None = None,
        attack: Callable[[str], str] = str.upper,
    ) -> None:
        super().__init__(name, group, "a toy", "this project", self.test, contract)
        vars(self).update(error=error, attack=attack, ran=[])

    def test(self, subject: Subject) -> StressResult:
        self.ran.append(self.name)
        if self.error is not None:
            raise self.error
        prompts = [self.attack(str(prompt)) for prompt in subject.harmful]
        arms = subject.interventions
        found = replies_to(subject.engine, prompts, list(arms.values()), subject.sampling)
        texts = {arm: [reply.text for reply in own] for arm, own in zip(arms, found, strict=True)}
        values = {arm: [text[:1].isalpha() if text else None for text in own] for arm, own in texts.items()}
        note = str(torch.rand(1).item())
        finding = Finding("letters", "refused", values, "open", f"{subject.suite}: letters.", note=note)
        facts = {"budget": torch.tensor(3), "loss": float("nan"), "prompts": prompts[:1]}
        return StressResult([finding], {arm: {"letters": own} for arm, own in texts.items()}, facts)


class MissingError(Steer2EditError):
    """An optional package is not there."""


def files(run: Path) -> dict[str, Any]:
    """What the run kept, without the seconds, which no two runs share."""
    import json

    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*.json")):
        content = json.loads(path.read_text())
        found[str(path.relative_to(run))] = timeless(content)
    return found


def timeless(content: Any) -> Any:
    """JSON without what no two runs share."""
    if isinstance(content, dict):
        return {k: timeless(v) for k, v in content.items() if k not in ("seconds", "created", "command")}
    return [timeless(one) for one in content] if isinstance(content, list) else content
