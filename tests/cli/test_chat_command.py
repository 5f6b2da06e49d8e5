"""`steer2edit chat` on a tiny checkpoint: the replies are those of each arm alone, while they grow and at the end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer import BadParameter

from families import random_site_means
from steer2edit.artifacts import save_edit, save_vectors
from steer2edit.cli import app, console as terminal
from steer2edit.core import Editing, Intervention, Steering, SteeringVectors, WeightEdit
from steer2edit.editing import convert, intervened
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import (
    LanguageModel,
    Message,
    Reply,
    Sampling,
    encode_prompts,
    generate,
    generate_batch,
    load_model,
)
from tiny_chat import tiny_chat_model

SHORT = ("--max-new-tokens", "6")
SAMPLING = Sampling(max_new_tokens=6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base") / "tiny"
    model = tiny_chat_model()
    model.network.save_pretrained(directory)
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LanguageModel:
    return load_model(str(checkpoint))


@pytest.fixture(scope="module")
def vectors(model: LanguageModel) -> SteeringVectors:
    generator = torch.Generator().manual_seed(1)
    sites = {site: random_site_means(module, generator) for site, module in model.sites.items()}
    return SteeringVectors(sites, {"model": model.describe()})


@pytest.fixture(scope="module")
def edit(model: LanguageModel, vectors: SteeringVectors) -> WeightEdit:
    return convert(model, vectors, Hyperparameters(0.2, 0.2, 0.1), force=True)


@pytest.fixture(scope="module")
def arms(model: LanguageModel, vectors: SteeringVectors, edit: WeightEdit, tmp_path_factory: Any) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("arms")
    save_vectors(vectors, folder / "v.safetensors")
    save_edit(model, edit, folder / "mine")
    return ("--steer", f"{folder / 'v.safetensors'}:3", "--edit", f"{folder / 'mine'}:0.5")


def run(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


def alone(model: LanguageModel, intervention: Intervention, turns: list[Message]) -> Reply:
    with intervened(model, [intervention]):
        return generate(model, [turns], SAMPLING)[0]


def test_every_reply_is_that_of_its_arm_alone(
    checkpoint: Path,
    model: LanguageModel,
    vectors: SteeringVectors,
    edit: WeightEdit,
    arms: tuple[str, ...],
    capsys: Any,
) -> None:
    run("chat", checkpoint, "How do I bake bread?", *arms, *SHORT, "--json")
    found = json.loads(capsys.readouterr().out)
    turns: list[Message] = [{"role": "user", "content": "How do I bake bread?"}]
    own = [alone(model, one, turns) for one in (None, Steering(vectors, 3.0), Editing(edit, 0.5))]
    assert [one["label"] for one in found["replies"]] == ["base", "steering 3", "mine × 0.5"]
    assert [one["reply"] for one in found["replies"]] == [reply.answer for reply in own]
    assert len({reply.text for reply in own}) == 3


def test_replies_grow_by_a_token_at_a_time(model: LanguageModel) -> None:
    seen: list[list[Reply]] = []
    encoded = encode_prompts(model, ["one", "How do I bake bread?"])
    replies = generate_batch(model, encoded, SAMPLING, seen.append)
    assert replies == generate_batch(model, encoded, SAMPLING) == seen[-1]
    for row, reply in enumerate(replies):
        assert [now[row].ids for now in seen[: len(reply.ids)]] == [reply.ids[: i + 1] for i in range(len(reply.ids))]


def test_in_a_talk_each_goes_on_from_its_own_replies(
    checkpoint: Path, model: LanguageModel, vectors: SteeringVectors, edit: WeightEdit, arms: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch, capsys: Any,
) -> None:  # fmt: skip
    said = iter(["one", "", "two", "/new", "one"])

    def typed(_: str) -> str:
        try:
            return next(said)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    shown: list[list[str]] = []
    monkeypatch.setattr("steer2edit.cli.chat.columns_of_text", lambda labels, texts: shown.append(list(texts)) or "")
    run("chat", checkpoint, *arms, *SHORT)
    first, second, third = shown
    for row, arm in enumerate((None, Steering(vectors, 3.0), Editing(edit, 0.5))):
        turns: list[Message] = [{"role": "user", "content": "one"}]
        reply = alone(model, arm, turns)
        assert first[row] == third[row] == reply.shown
        turns += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": "two"}]
        assert second[row] == alone(model, arm, turns).shown


def test_an_empty_reply_is_called_that(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("steer2edit.models.generate_batch", lambda *given: [Reply(" ", (), finished=True)])
    run("chat", checkpoint, "How do I bake bread?", *SHORT)
    assert "(empty reply)" in capsys.readouterr().out


@pytest.mark.parametrize(("width", "lines"), [(80, 2), (40, 4)])
def test_side_by_side_where_there_is_room(width: int, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    wide = terminal.Console(markup=False, highlight=False, width=width)
    monkeypatch.setattr(terminal, "OUT", wide)
    wide.print(terminal.columns_of_text(["base", "[b]edit[/b]"], ["yes\x1b[31m", "no"]))
    shown = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len(shown) == lines
    assert "[b]edit[/b]" in " ".join(shown)
    assert "\x1b" not in " ".join(shown)


def test_a_talk_needs_somebody_who_types(checkpoint: Path) -> None:
    with pytest.raises(BadParameter, match="give a PROMPT"):
        run("chat", checkpoint)
