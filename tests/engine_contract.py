"""What every engine must do alike: its answers against a reference engine's, request by request."""

from collections.abc import Sequence

import pytest
import torch

from families import random_site_means
from steer2edit.core import Editing, Intervention, SteeringVectors
from steer2edit.editing import convert
from steer2edit.engines import Engine, Request, ResponseScore
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import EncodedResponse, LanguageModel, Prompt, Sampling


def random_edits(model: LanguageModel, strengths: Sequence[float], rho: float = 0.2) -> list[Editing]:
    """One edit per strength: every second one of the attention alone, every third one along directions of its own."""
    shared, own = random_vectors(model, seed=1), random_vectors(model, seed=2)
    edits = []
    for index, strength in enumerate(strengths):
        rho_mlp = None if index % 2 else rho * (1 + index / 4)
        vectors = own if index % 3 == 2 else shared
        edits.append(Editing(convert(model, vectors, Hyperparameters(rho, rho_mlp, 0.1)), strength))
    return edits


def random_vectors(model: LanguageModel, seed: int) -> SteeringVectors:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVectors({site: random_site_means(module, generator) for site, module in model.sites.items()})


def assert_same_replies(
    engine: Engine, reference: Engine, prompts: Sequence[Prompt], interventions: Sequence[Intervention], tokens: int
) -> None:
    """Greedy replies of one mixed batch; the interventions must show in them, or nothing was compared."""
    requests = [Request(prompt, intervention) for prompt in prompts for intervention in interventions]
    greedy = Sampling(max_new_tokens=tokens)
    found, wanted = engine.generate(requests, greedy), reference.generate(requests, greedy)
    assert found == wanted
    by_intervention = {tuple(reply.ids for reply in wanted[k :: len(interventions)]) for k in range(len(interventions))}
    assert len(by_intervention) == len(interventions)


def assert_same_scores(
    engine: Engine,
    reference: Engine,
    responses: Sequence[EncodedResponse],
    interventions: Sequence[Intervention],
    tolerance: float,
) -> None:
    """Log-probability and KL per token, and the log-probability alone where no KL is asked for."""
    wanted = reference.score(responses, interventions)
    found = engine.score(responses, interventions)
    alone = engine.score(responses, interventions, kl=False)
    _assert_close(found, wanted, tolerance)
    for k, row in enumerate(wanted):
        assert [s.kl for s in found[k]] == pytest.approx([s.kl for s in row], abs=tolerance)
        assert [s.kl for s in alone[k]] == pytest.approx([float("nan")] * len(row), nan_ok=True)
        if interventions[k] is None:
            assert [s.kl for s in found[k]] == [0.0] * len(row)  # exactly: the base against itself
        else:
            assert min(s.kl for s in row) > 10 * tolerance
    _assert_close(alone, wanted, tolerance)


def _assert_close(
    found: Sequence[Sequence[ResponseScore]], wanted: Sequence[Sequence[ResponseScore]], tolerance: float
) -> None:
    for row, other in zip(found, wanted, strict=True):
        assert [s.tokens for s in row] == [s.tokens for s in other]
        assert [s.nll for s in row] == pytest.approx([s.nll for s in other], abs=tolerance)
