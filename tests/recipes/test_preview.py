"""A first look at an edit: its replies and log-odds by hand, and what is said of an edit that does nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import steer2edit as s2e
from steer2edit.cli import app
from steer2edit.core import Site, SteeringVectors
from steer2edit.models import LanguageModel, encode_responses, span_log_probabilities, token_log_probabilities
from steer2edit.recipes.making import preview
from tiny_chat import tiny_chat_model

PAIRS = [(f"request number {i}", f"no, never {i}", f"yes, here it is {i}") for i in range(20)]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return s2e.Model.of(tiny_chat_model(num_hidden_layers=2))


@pytest.fixture(scope="module")
def vectors(model: LanguageModel) -> SteeringVectors:
    return s2e.extract(model, PAIRS)


def margin(model: LanguageModel, row: dict[str, Any]) -> float:
    """log p per token of the positive less that of the negative response."""
    encoded = encode_responses(model, [tuple(row["positive"]), tuple(row["negative"])])
    more, less = (
        token_log_probabilities(own, one).mean().item()
        for own, one in zip(span_log_probabilities(model, encoded), encoded, strict=True)
    )
    return more - less


def test_replies_and_log_odds_are_those_of_the_model(model: LanguageModel, vectors: SteeringVectors) -> None:
    edit = s2e.convert(model, vectors, rho_attn=0.05, rho_mlp=0.2, alpha=0.1)
    rows = vectors.metadata["preview"]
    assert len(rows) == 4  # a fifth of twenty
    found = preview(model, vectors, edit)
    assert found is not None
    assert list(found.replies) == ["base", "steering 0.3", "edit"]
    before = sum(margin(model, row) for row in rows) / len(rows)
    with edit.on(model):
        after = sum(margin(model, row) for row in rows) / len(rows)
        assert found.replies["edit"] == tuple(model.replies([row["positive"][0] for row in rows], max_new_tokens=32))
    assert found.log_odds["base"].value == pytest.approx(before, abs=1e-5)
    assert found.changes["edit"].value == pytest.approx(after - before, abs=1e-4)
    silent = replace(found, replies={**found.replies, "edit": ("",) * 4})
    assert repr(silent).count("    edit: (empty reply)\n") == 4
    assert not found.nothing
    assert found.sentences[0].startswith(f"With the edit {found.changed} of 4 replies differ")


def test_an_edit_that_does_nothing_is_called_that(model: LanguageModel, vectors: SteeringVectors) -> None:
    edit = 1e-6 * s2e.convert(model, vectors, rho_attn=0.2)
    found = preview(model, vectors, edit)
    assert found is not None
    assert found.nothing
    assert found.sentences[0].startswith("This edit changes nothing that can be seen: 0 of 4 replies differ")


def test_an_edit_that_silences_is_seen(model: LanguageModel, vectors: SteeringVectors) -> None:
    found = preview(model, vectors, s2e.convert(model, vectors, rho_attn=0.05, rho_mlp=0.2, alpha=0.1))
    assert found is not None
    assert "empty" not in repr(found)
    silent = replace(found, replies={**found.replies, "edit": ("", " ", "a", "b")})
    assert "    edit: (empty reply)\n" in repr(silent)
    assert silent.sentences[0] == "With the edit 4 of 4 replies differ from the base's, 2 of them are empty."


def test_vectors_without_rows_have_no_preview(model: LanguageModel, vectors: SteeringVectors) -> None:
    edit = s2e.convert(model, vectors, rho_attn=0.2)
    assert "preview" not in edit.metadata["vectors"]
    bare = replace(vectors, metadata={key: v for key, v in vectors.metadata.items() if key != "preview"})
    assert preview(model, bare, edit) is None


def test_convert_shows_it(model: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.network.save_pretrained(tmp_path / "base")
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(tmp_path / "base")
    loaded = s2e.load(tmp_path / "base")
    s2e.extract(loaded, PAIRS).save(tmp_path / "v.safetensors")
    common = ["convert", str(tmp_path / "base"), str(tmp_path / "v.safetensors"), "--rho-attn", "0.2", "--out"]
    app([*common, str(tmp_path / "edit")], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "Preview" in shown
    assert "    steering 0.3: " in shown
    assert "Log-odds of the wanted responses" in shown
    v = loaded.sites[Site(1, "mlp")].weight[:, 0].float()
    s2e.load_vectors({"L1.mlp": v}).save(tmp_path / "made-elsewhere.safetensors")
    (tmp_path / "pairs.csv").write_text("\n".join(["prompt;positive;negative", *(";".join(pair) for pair in PAIRS)]))
    given = [str(tmp_path / name) for name in ("base", "made-elsewhere.safetensors", "measured", "pairs.csv")]
    app(["convert", *given[:2], "--out", given[2], "--contrast", given[3], "--rho-mlp", "0.05", "--allow-missing"],
        standalone_mode=False)  # fmt: skip
    assert "Log-odds of the wanted responses" in capsys.readouterr().out
    app([*common, str(tmp_path / "again"), "--json"], standalone_mode=False)
    assert "Preview" not in capsys.readouterr().out
