"""The page names every architecture of the installed transformers; some are tried here, all of them if slow."""

import re
from pathlib import Path

import pytest

from architectures import OTHERS, REASONS, architectures, tiny_architecture
from steer2edit.models import find_sites

DOCS = Path(__file__).parents[2] / "docs" / "architectures.md"
SOME = (
    "phi",
    "gptj",
    "codegen",
    "mpt",
    "bert",
    "gemma4_text",
    "nemotron_h",
    "jamba",
    "lfm3",
    "mistral4",
    "olmo_hybrid",
)


def named_in_docs() -> list[str]:
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([\w.-]+)`", row.split("|")[1])]


def test_every_architecture_resolves_or_has_a_reason() -> None:
    """If transformers has a new one: python tests/architectures.py, and put the tables into the page."""
    named = named_in_docs()
    assert len(named) == len(set(named))
    assert set(named) == {*architectures(), *OTHERS}
    assert set(architectures()) >= set(REASONS)
    assert len(REASONS) <= 0.05 * len(architectures())


@pytest.mark.parametrize("model_type", SOME)
def test_some_are_found_and_proven(model_type: str) -> None:
    found = find_sites(tiny_architecture(model_type))
    assert found.heads_seen is not None
    assert found.sites
    assert any(site.block != "mlp" for site in found.sites)


def test_weights_do_not_decide_what_is_found() -> None:
    """With all numbers the same, attention is a mean over tokens that are alike: nothing is seen of it or its heads."""
    network = tiny_architecture("llama")
    expected = find_sites(network)
    for parameter in network.parameters():
        parameter.data.fill_(0.125)
    found = find_sites(network)
    assert found.layout == expected.layout
    assert found.heads_seen is not None


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in architectures() if name not in REASONS])
def test_all_are_found_and_proven(model_type: str) -> None:
    assert find_sites(tiny_architecture(model_type)).heads_seen is not None
