"""`steer` and `search` measure what the vectors are of, or say that they cannot know it."""

import json
from pathlib import Path

import pytest
import torch

from families import random_site_means
from steer2edit.artifacts import save_vectors
from steer2edit.cli import app
from steer2edit.core import ClassMeans, Site, SiteMeans, SteeringVectors
from steer2edit.errors import DataError
from steer2edit.evaluation import behaviour, behaviour_of
from steer2edit.models import load_model
from steer2edit.steering.examples import prompt_digests
from tiny_chat import tiny_chat_model

SITE = {Site(0, "mlp"): SiteMeans(ClassMeans(torch.ones(2), torch.zeros(2)))}


@pytest.mark.parametrize(
    ("preset", "wanted"),
    [
        ("safety", "safety"),
        ("safety-benign", "safety"),
        ("truthfulness", "truthfulness"),
        ("conciseness", "conciseness"),
    ],
)
def test_by_preset(preset: str, wanted: str) -> None:
    assert behaviour_of(SteeringVectors(SITE, {"contrast": {"name": preset}})) == wanted


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"contrast": {"name": "mine.jsonl"}}, "were made from 'mine.jsonl'"),
        ({"origin": "imported"}, "do not say what they were made from"),
        ({"contrast": "safety"}, "do not say what they were made from"),
        ({"contrast": {}}, "do not say what they were made from"),
    ],
)
def test_not_known(metadata: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        behaviour_of(SteeringVectors(SITE, metadata), "--evaluate")
    assert "Say what to measure: --evaluate " in str(caught.value)
    assert str(caught.value).endswith("or your own: a behaviour's folder, or the contrast file.")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tiny_chat_model(num_hidden_layers=1)
    made.network.save_pretrained(tmp_path / "model")
    assert made.tokenizer is not None
    made.tokenizer.save_pretrained(tmp_path / "model")
    model = load_model(str(tmp_path / "model"))
    generator = torch.Generator().manual_seed(1)
    sites = {site: random_site_means(module, generator) for site, module in model.sites.items()}
    for name in ("truthfulness", "mine.jsonl"):
        facts = {"model": model.describe(), "contrast": {"name": name}}
        save_vectors(SteeringVectors(sites, facts), tmp_path / f"{name}.safetensors")
    capsys.readouterr()
    given = ["steer", str(tmp_path / "model"), "--strength", "0", "--limit", "1", "--max-new-tokens", "2", "--json"]
    pairs = [{"prompt": f"p{i}", "positive": "Arr.", "negative": "Yes."} for i in range(12)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    (tmp_path / "pirate").mkdir()
    (tmp_path / "pirate" / "contrast.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    (tmp_path / "pirate" / "behaviour.toml").write_text('[sets.talk]\nscorer = "phrases"\nany = ["arr"]', "utf-8")
    for vectors, options, wanted in (
        ("truthfulness", [], "truthfulness"),
        ("truthfulness", ["--evaluate", "conciseness"], "conciseness"),
        ("mine.jsonl", ["--evaluate", "truthfulness"], "truthfulness"),
        ("mine.jsonl", ["--evaluate", str(tmp_path / "mine.jsonl")], "mine.jsonl"),
        ("mine.jsonl", ["--evaluate", str(tmp_path / "pirate")], "pirate"),
    ):
        app([*given, str(tmp_path / f"{vectors}.safetensors"), *options], standalone_mode=False)
        printed = json.loads(capsys.readouterr().out)
        assert printed["behaviour"] == wanted
        attribute = {
            "truthfulness": "truth_preferred", "conciseness": "reply_tokens", "mine.jsonl": "pairs_preferred",
            "pirate": "talk_shown",
        }[wanted]  # fmt: skip
        assert attribute in printed["conditions"][0]["metrics"]
    for words in (given, ["search", str(tmp_path / "model"), "--out", str(tmp_path / "run")]):
        with pytest.raises(DataError, match=r"were made from 'mine.jsonl'"):
            app([*words, str(tmp_path / "mine.jsonl.safetensors")], standalone_mode=False)
    assert not (tmp_path / "run").exists()
    asked = behaviour(str(tmp_path / "mine.jsonl"), "validation").prompts["pairs"]
    facts = {"model": model.describe(), "prompts": prompt_digests(asked[:1])}
    save_vectors(SteeringVectors(sites, facts), tmp_path / "seen.safetensors")
    own = ["--evaluate", str(tmp_path / "mine.jsonl")]
    with pytest.raises(DataError, match="1 prompts are among both the vector and the validation prompts"):
        app([*given, str(tmp_path / "seen.safetensors"), *own], standalone_mode=False)
