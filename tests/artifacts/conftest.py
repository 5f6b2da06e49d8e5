import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from artifact_models import random_edit, tiny_network
from transformers.utils import logging

from steer2edit.core import WeightEdit
from steer2edit.models import LanguageModel

sys.path.insert(0, str(Path(__file__).parents[1]))  # for families.py


@pytest.fixture(autouse=True, scope="session")
def _no_progress_bars() -> None:
    logging.disable_progress_bar()


@pytest.fixture
def build() -> Callable[[str], LanguageModel]:
    return lambda kind: LanguageModel(tiny_network(kind), name=f"tiny-{kind}")


@pytest.fixture
def model(build: Callable[[str], LanguageModel]) -> LanguageModel:
    return build("llama")


@pytest.fixture
def edit(model: LanguageModel) -> WeightEdit:
    return random_edit(model, method="steer2edit", hyperparameters={"rho_attn": 0.2, "rho_mlp": None, "alpha": 0.5})
