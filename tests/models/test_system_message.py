"""The system message: where it stands, what is recorded of it, and what a later step does with the record."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from steer2edit.artifacts import load_edit, load_vectors
from steer2edit.cli import app
from steer2edit.errors import DataError, InvalidValueError, MismatchError
from steer2edit.models import ChatFormat, LanguageModel, encode_prompts, encode_responses, load_model, recorded_chat
from steer2edit.models.chat import render
from tiny_chat import CHAT_TEMPLATE, chatml, tiny_chat_model, tiny_tokenizer, vectors_of

SAID = "Be brief."
BEFORE = f"<|im_start|>system\n{SAID}<|im_end|>\n"


def model_with(system: str | None, template: str = CHAT_TEMPLATE) -> LanguageModel:
    tokenizer = tiny_tokenizer(template=template)
    return replace(tiny_chat_model(tokenizer=tokenizer, num_hidden_layers=1), chat=ChatFormat(system=system))


def test_every_conversation_without_one_begins_with_it() -> None:
    model = model_with(SAID)
    assert render(model, "Hi") == BEFORE + chatml("Hi")
    assert render(model_with(None), "Hi") == chatml("Hi")
    (ids,) = encode_prompts(model, ["Hi"])
    assert model.tokenizer.decode(ids) == BEFORE + chatml("Hi")
    (encoded,) = encode_responses(model, [("Hi", "Yes.")])
    assert model.tokenizer.decode(encoded.ids[: encoded.start]) == BEFORE + chatml("Hi")


def test_a_conversations_own_comes_first() -> None:
    own = [{"role": "system", "content": "Be long."}, {"role": "user", "content": "Hi"}]
    assert render(model_with(SAID), own) == render(model_with(None), own)


@pytest.mark.parametrize("template", [
    CHAT_TEMPLATE.replace("{% for", "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}"
                          "{% endif %}{% for", 1),
    CHAT_TEMPLATE.replace("<|im_start|>{{", "{% if message['role'] != 'system' %}<|im_start|>{{", 1).replace(
        "<|im_end|>\n{% endfor", "<|im_end|>\n{% endif %}{% endfor", 1),
])  # fmt: skip
def test_a_template_that_takes_none_is_refused(template: str) -> None:
    assert render(model_with(None, template), "Hi") == chatml("Hi")
    with pytest.raises(DataError, match=r"no system role|renders the system's message 'Be brief\.' without its text"):
        render(model_with(SAID, template), "Hi")


def test_the_record() -> None:
    made = {"model": model_with(SAID).describe()}
    assert recorded_chat(made)["system"] == SAID
    assert "system" not in model_with(None).describe()["chat"]
    assert ChatFormat.going_on({}, made, None).system == SAID
    assert ChatFormat.going_on({}, made, None, "Be long.").system == "Be long."
    model_with(SAID).require_fit(vectors_of(made))
    for other in (None, "Be long."):
        with pytest.raises(MismatchError, match=r'with the system message "Be brief\.".*Leave out .*--system'):
            model_with(other).require_fit(vectors_of(made))
    with pytest.raises(MismatchError, match="system message null"):
        model_with(SAID).require_fit(vectors_of({"model": model_with(None).describe()}))


@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_empty_one_is_none(empty: str) -> None:
    with pytest.raises(InvalidValueError, match="the system message must not be empty"):
        ChatFormat(system=empty)


def run(*arguments: str) -> None:
    app(list(arguments), standalone_mode=False)


def test_commands_pass_it_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = model_with(None)
    model.network.save_pretrained("model")
    model.tokenizer.save_pretrained("model")
    rows = [{"prompt": f"Why {i}?", "positive": f"No, {i}", "negative": f"Yes {i}"} for i in range(12)]
    Path("contrast.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("asked.jsonl").write_text(json.dumps({"prompt": "How?", "split": "validation"}))
    run("extract", "model", "--contrast", "contrast.jsonl", "--system", SAID, "--out", "v.safetensors")
    run("convert", "model", "v.safetensors", "--rho-attn", "0.01", "--out", "edit")
    for made in (load_vectors(Path("v.safetensors")), load_edit("edit")):
        assert recorded_chat(made.metadata)["system"] == SAID
    assert load_model("model", like=load_edit("edit").metadata).chat.system == SAID
    evaluate = ("evaluate", "model", "--edit", "edit", "--task", "refusal=asked.jsonl", "--max-new-tokens", "1")
    run(*evaluate, "--out", "out.json")
    assert json.loads(Path("out.json").read_text())["model"]["chat"]["system"] == SAID
    with pytest.raises(MismatchError, match="system message"):
        run(*evaluate, "--system", "Be long.")
