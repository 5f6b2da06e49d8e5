"""Template arguments and the day: what is said, what is recorded, and what a later step takes from the record."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from steer2edit.artifacts import load_edit, load_vectors
from steer2edit.artifacts.run_folder import begun_with
from steer2edit.cli import app
from steer2edit.editing import convert, edited
from steer2edit.errors import InvalidValueError, MismatchError
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import ChatFormat, LanguageModel, chat_format, load_model, recorded_chat
from steer2edit.models.chat import render
from steer2edit.recipes.recipe import read_recipe
from steer2edit.recipes.recipe_run import template_args
from steer2edit.settings import RunOptions
from steer2edit.settings.declared import read_values
from tiny_chat import CHAT_TEMPLATE, chatml, tiny_chat_model, tiny_tokenizer, vectors_of

THINKING = CHAT_TEMPLATE.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}",
)
DATED = "{{ strftime_now('%d %b %Y %H:%M:%S') }}|" + THINKING


def model_with(template: str, settings: ChatFormat | None = None) -> LanguageModel:
    return replace(
        tiny_chat_model(tokenizer=tiny_tokenizer(template=template), num_hidden_layers=1), chat=settings or ChatFormat()
    )


def test_an_argument_reaches_the_template() -> None:
    model = model_with(THINKING, ChatFormat({"enable_thinking": False}))
    assert render(model, "Hi") == chatml("Hi") + "<think>\n\n</think>\n\n"
    assert render(model_with(THINKING), "Hi") == chatml("Hi")


def test_the_day_is_the_models_at_midnight() -> None:
    model = model_with(DATED, ChatFormat(date="2024-07-26"))
    assert render(model, "Hi") == "26 Jul 2024 00:00:00|" + chatml("Hi")
    own = model.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert f"{date.today():%d %b %Y}" in own  # transformers' clock goes on


def test_the_record_says_what_a_prompt_depends_on() -> None:
    settings = ChatFormat({"enable_thinking": False}, "2024-07-26")
    dated, undated = (model_with(template, settings).describe()["chat"] for template in (DATED, THINKING))
    assert dated["arguments"] == undated["arguments"] == {"enable_thinking": False}
    assert (dated["date"], undated["date"]) == ("2024-07-26", None)
    assert dated["template"] != undated["template"]
    assert undated["template"] == model_with(THINKING).describe()["chat"]["template"]


@pytest.mark.parametrize(
    ("arguments", "day"),
    [({"tokenize": 1}, "2024-01-01"), ({"messages": []}, "2024-01-01"), ({"a b": 1}, "2024-01-01"),
     ({"x": float("nan")}, "2024-01-01"), ({"x": object()}, "2024-01-01"), ({}, "1 May")],
)  # fmt: skip
def test_what_is_no_argument_or_day(arguments: dict[str, object], day: str) -> None:
    with pytest.raises(InvalidValueError):
        ChatFormat(arguments, day)


def test_what_was_recorded_is_used_again_and_ones_own_comes_first() -> None:
    made = model_with(DATED, ChatFormat({"enable_thinking": False, "tone": "dry"}, "2024-07-26")).describe()
    for like in ({"model": made}, [{}, {"chat": made["chat"]}], [{"model": None}, {"model": made}]):
        again = ChatFormat.going_on({"tone": "warm"}, like, None)
        assert (again.arguments, again.date) == ({"enable_thinking": False, "tone": "warm"}, "2024-07-26")
    assert ChatFormat.going_on({}, {"model": {"name": "older"}, "chat_template": "0" * 64}, None).arguments == {}
    assert recorded_chat({"model": {"chat": "?"}}) == {}


def test_an_artifact_made_with_other_arguments_is_refused() -> None:
    made = {"model": model_with(THINKING, ChatFormat({"enable_thinking": False})).describe()}
    model = model_with(THINKING)
    with pytest.raises(
        MismatchError, match=r'made with the template arguments \{"enable_thinking": false\}.*--template'
    ):
        model.require_fit(vectors_of(made))
    model.require_fit(vectors_of(made), allow_mismatch=True)
    model.require_fit(vectors_of({"model": {"name": "made before there was a record"}}))


class _Earlier(date):
    """The day that vectors were made on, some days ago."""

    @classmethod
    def today(cls) -> "_Earlier":
        return cls(2024, 7, 26)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose template has an argument and a date; vectors made some days ago, and an edit made of them."""
    folder = tmp_path_factory.mktemp("chat")
    model = tiny_chat_model(tokenizer=tiny_tokenizer(template=DATED), num_hidden_layers=1)
    model.network.save_pretrained(folder / "model")
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": f"Why {i}?", "positive": f"No, {i}", "negative": f"Yes {i}"} for i in range(12)]
    (folder / "contrast.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "asked.jsonl").write_text(json.dumps({"prompt": "How?", "split": "validation"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(chat_format, "date", _Earlier)
        run(
            "extract",
            "model",
            "--contrast",
            "contrast.jsonl",
            "--template-arg",
            "enable_thinking=false",
            "--out",
            "v.safetensors",
        )
        patch.setattr(chat_format, "date", date)
        run("convert", "model", "v.safetensors", "--rho-attn", "0.01", "--out", "edit")
    return folder


def run(*arguments: str) -> None:
    app(list(arguments), standalone_mode=False)


STEER = ("--steer", "v.safetensors:0.1")
EVALUATE = ("evaluate", "model", "--task", "refusal=asked.jsonl", "--max-new-tokens", "1", "--out", "out.json")


@pytest.mark.parametrize(
    "made", [("--steer", "v.safetensors:0.1"), ("--edit", "edit"), ("--edit", "edit", "--steer", "v.safetensors:1")]
)
def test_a_command_goes_on_with_the_arguments_and_the_day_of_vectors_and_edits(
    folder: Path, made: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    recorded = {"template": recorded_chat(load_vectors(folder / "v.safetensors").metadata)["template"]}
    recorded |= {"arguments": {"enable_thinking": False}, "date": "2024-07-26"}
    assert recorded_chat(load_vectors(folder / "v.safetensors").metadata) == recorded
    assert recorded_chat(load_edit(folder / "edit").metadata) == recorded
    asked: list[str] = []
    apply = PreTrainedTokenizerBase.apply_chat_template
    monkeypatch.setattr(
        PreTrainedTokenizerBase, "apply_chat_template", lambda *a, **k: asked.append(apply(*a, **k)) or asked[-1]
    )
    run(*EVALUATE, *made, "--overwrite")
    assert "26 Jul 2024 00:00:00|" + chatml("How?") + "<think>\n\n</think>\n\n" in asked
    assert json.loads((folder / "out.json").read_text())["model"]["chat"] == recorded


def test_arguments_that_contradict_an_artifacts_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    other = (*EVALUATE, *STEER, "--template-arg", "enable_thinking=true", "--overwrite")
    with pytest.raises(MismatchError, match="enable_thinking"):
        run(*other)
    run(*other, "--allow-mismatch")
    assert json.loads((folder / "out.json").read_text())["model"]["chat"]["arguments"] == {"enable_thinking": True}


def test_from_python(folder: Path) -> None:
    path, made = str(folder / "model"), load_vectors(folder / "v.safetensors")
    model = load_model(path, template_args={"enable_thinking": False})
    assert render(model, "Hi").endswith("</think>\n\n")
    assert f"{date.today():%d %b %Y}" in render(model, "Hi")
    assert load_model(path, like=made.metadata).chat == ChatFormat({"enable_thinking": False}, "2024-07-26")
    with pytest.raises(InvalidValueError, match=r"no variable 'enable_thinkng'.*It knows enable_thinking\."):
        load_model(path, template_args={"enable_thinkng": False})
    with pytest.raises(MismatchError, match="like="):
        convert(load_model(path), made, Hyperparameters(rho_attn=0.1, rho_mlp=None, alpha=0.5))
    with edited(model, load_edit(folder / "edit")):  # of another day: only the record tells
        pass


@pytest.mark.parametrize(("text", "value"), [("x=false", False), ("x=1.5", 1.5), ("x=dry", "dry"), ("x=NaN", "NaN"),
                                             ('x={"a":[1]}', {"a": [1]}), ("x=a=b", "a=b"), ("x=", "")])  # fmt: skip
def test_values_on_the_command_line(text: str, value: object) -> None:
    assert read_values("--template-arg", [text]) == {"x": value}


def test_a_recipe_has_arguments_for_its_own_model() -> None:
    recipe = read_recipe("llama2-safety")
    thinking = recipe.model.model_copy(update={"template_args": {"enable_thinking": False}})
    recipe = recipe.model_copy(update={"model": thinking})
    assert template_args(recipe, RunOptions(), {"tone": "dry"}) == {"enable_thinking": False, "tone": "dry"}
    assert template_args(recipe, RunOptions(other_model=True), {}) == {}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"identity": 3}', None])
def test_a_folder_without_a_run_has_nothing_to_go_on_from(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "steer2edit.json").write_text(content)
    assert begun_with(tmp_path) == {}
