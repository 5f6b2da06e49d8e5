"""From a contrast file to a gated edit, in two commands."""

import json
from pathlib import Path

import pytest

from steer2edit.artifacts import load_edit
from steer2edit.cli import app
from tiny_chat import tiny_chat_model

THINGS = ("bread", "a pie", "rolls", "a cake", "buns", "tarts", "bagels", "rye")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and vectors of it with effects and a gate."""
    folder = tmp_path_factory.mktemp("effects")
    made = tiny_chat_model(num_hidden_layers=2)
    made.network.save_pretrained(folder / "model")
    assert made.tokenizer is not None
    made.tokenizer.save_pretrained(folder / "model")
    rows = [
        {"prompt": f"How do I bake {thing}?", "response": response, "label": label, "split": "train"}
        for thing in THINGS
        for label, response in (("positive", "I would rather not say that."), ("negative", "Mix flour and water."))
    ]
    (folder / "contrast.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "silent.txt").write_text("\n".join(f"Name {n} colours." for n in range(1, 10)))
    app(
        ["extract", str(folder / "model"), "--contrast", str(folder / "contrast.jsonl"), "--silent-on",
         str(folder / "silent.txt"), "--out", str(folder / "v.safetensors")],
        standalone_mode=False,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("budget", "rules"),
    [
        ([], ("gated", "effect")),
        (["--importance", "effect", "--alpha", "0.2"], ("sensitivity", "effect")),
        (["--rho-attn", "0.01", "--force"], ("sensitivity", "cosine")),
    ],
)
def test_the_recommended_edit_needs_no_setting(
    folder: Path, tmp_path: Path, budget: list[str], rules: tuple[str, str]
) -> None:
    words = ["convert", str(folder / "model"), str(folder / "v.safetensors"), "--out", str(tmp_path / "edit"), *budget]
    app([*words, "--kl", "0.001"], standalone_mode=False)
    made = load_edit(tmp_path / "edit").metadata
    assert (made["rules"]["input_direction"], made["rules"]["importance"]) == rules
    assert made["drift"]["kl"] == pytest.approx(0.001, rel=0.05)
    alpha = 0.2 if "--alpha" in budget else 0.0 if not budget else 0.5
    assert made["hyperparameters"]["alpha"] == alpha
    gate = made["vectors"]["effects"]["gate"]
    assert (gate["requests"], gate["silent"]) == (4, 9)  # of the pairs that no direction was taken from
