"""What must not become a prompt: files that are no template, templates that drop text, tokens without a row."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from steer2edit.errors import DataError, ModelError
from steer2edit.models import (
    LanguageModel,
    Prompt,
    Sampling,
    encode_prompts,
    encode_responses,
    generate,
    load_model,
)
from steer2edit.models.chat import render
from steer2edit.models.chat_format import load_tokenizer, read_template
from steer2edit.models.loading import wrap_model
from tiny_chat import CHAT_TEMPLATE, END, tiny_chat_model, tiny_tokenizer

ONLY_SYSTEM = "{% for m in messages if m['role'] == 'system' %}{{ m['content'] }}{% endfor %}:\n"
NO_SYSTEM = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] | trim }}\n{% endfor %}"


class TestTemplateFiles:
    @pytest.mark.parametrize(
        ("content", "right"),
        [
            (CHAT_TEMPLATE, CHAT_TEMPLATE),
            ("\ufeff" + CHAT_TEMPLATE, CHAT_TEMPLATE),
            (json.dumps({"chat_template": CHAT_TEMPLATE}), CHAT_TEMPLATE),
            (json.dumps({"bos_token": "<s>", "chat_template": CHAT_TEMPLATE}), CHAT_TEMPLATE),
        ],
    )
    def test_a_template_or_json_that_has_one(self, tmp_path: Path, content: str, right: object) -> None:
        file = tmp_path / "file"
        file.write_text(content, encoding="utf-8")
        assert read_template(file) == right

    @pytest.mark.parametrize("content", ["{}", "[]", '"text"', '{"chat_template": 3}', '{"chat_template": []}'])
    def test_json_without_one(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "it.json").write_text(content)
        with pytest.raises(ModelError, match=r"it\.json' is JSON without a chat_template"):
            read_template(tmp_path / "it.json")

    def test_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
        for name in ("none-there", "binary"):
            with pytest.raises(ModelError, match=f"cannot read the chat template '.*{name}'"):
                read_template(tmp_path / name)

    @pytest.mark.parametrize("template", [ONLY_SYSTEM, "{{ messages[0]['content'] }", "{{ messages[1]['content'] }}"])
    def test_a_message_names_the_file(self, tmp_path: Path, template: str) -> None:
        tiny_chat_model().network.save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        (tmp_path / "wrong.jinja").write_text(template)
        model = load_model(str(tmp_path), device="cpu", chat_template=str(tmp_path / "wrong.jinja"))
        with pytest.raises(DataError, match=r"the chat template '.*wrong\.jinja'"):
            encode_responses(model, [("How do I bake bread?", "So.")])


class TestTheTextIsThere:
    @pytest.mark.parametrize("use", [lambda m, p: encode_prompts(m, [p]), lambda m, p: encode_responses(m, [(p, "x")])])
    @pytest.mark.parametrize(
        "prompt", ["Why?", [{"role": "system", "content": "So"}, {"role": "user", "content": "Why?"}]]
    )
    def test_a_template_without_the_question_is_an_error(self, use: Any, prompt: Prompt) -> None:
        model = tiny_chat_model(tokenizer=tiny_tokenizer(template=ONLY_SYSTEM))
        with pytest.raises(DataError, match=r"of 'tiny-llama' renders the user's message 'Why\?' without its text"):
            use(model, prompt)

    def test_a_template_without_the_system_prompt(self) -> None:
        model = tiny_chat_model(tokenizer=tiny_tokenizer(template=NO_SYSTEM))
        with pytest.raises(DataError, match="the system's message 'Be brief' without its text"):
            render(model, [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Why?"}])
        assert render(model, "  Why?\n ") == "Why?\n"  # white space may go

    def test_every_row_is_looked_at(self) -> None:
        model = tiny_chat_model(tokenizer=tiny_tokenizer(template="{{ messages[-1]['content'].split('#')[0] }}"))
        assert len(encode_prompts(model, ["Why?", "How?"])) == 2
        with pytest.raises(DataError, match="'How# many"):
            encode_prompts(model, ["Why?", "How# many?"])


class TestTokensWithoutARow:
    @pytest.fixture
    def model(self) -> LanguageModel:
        tokenizer = tiny_tokenizer()
        rows = len(tokenizer)
        tokenizer.add_tokens(["<tool>"])
        return tiny_chat_model(tokenizer=tokenizer, vocab_size=rows)

    def test_it_is_named_with_the_rows(self, model: LanguageModel) -> None:
        rows = len(model.tokenizer) - 1
        message = rf"'<tool>' .* is token {rows}, and the embedding of 'tiny-llama' has {rows} rows"
        for use in (
            lambda: encode_prompts(model, ["Hi", "a <tool>"]),
            lambda: encode_responses(model, [("Hi", "Yo"), ("Hi", "a <tool> b")]),
            lambda: encode_responses(model, [("<tool>", "Yo")]),
        ):
            with pytest.raises(DataError, match=message):
                use()

    def test_what_has_no_such_token_works(self, model: LanguageModel) -> None:
        assert encode_prompts(model, ["Hi"]) == encode_prompts(tiny_chat_model(), ["Hi"])
        assert len(generate(model, ["Hi"], Sampling(2))) == 1

    def test_an_end_without_a_row(self, model: LanguageModel) -> None:
        model.tokenizer.eos_token = "<tool>"
        with pytest.raises(DataError, match=r"'<tool>' \(in what ends a reply\)"):
            generate(model, ["Hi", "a longer one"], Sampling(2))

    def test_an_end_of_a_configuration_that_the_tokenizer_does_not_know_is_none(self) -> None:
        model = tiny_chat_model()
        model.network.generation_config.eos_token_id = [99999, model.tokenizer.convert_tokens_to_ids(END)]
        assert [len(reply.ids) <= 3 for reply in generate(model, ["Hi", "a longer prompt"], Sampling(3))] == [True] * 2


class MistralCommonBackend(PreTrainedTokenizerFast):
    """As transformers' class of this name."""

    def __init__(self) -> None:
        super().__init__(tokenizer_object=tiny_tokenizer().backend_tokenizer, eos_token=END)


class TestMistralCommon:
    @pytest.fixture(autouse=True)
    def preferred(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: MistralCommonBackend())

    @pytest.mark.parametrize(("template", "asked"), [(CHAT_TEMPLATE, None), (None, "none"), (None, None)])
    def test_a_tokenizer_json_is_taken(self, tmp_path: Path, template: str | None, asked: str | None) -> None:
        tiny_tokenizer(template=template).save_pretrained(tmp_path)
        found = load_tokenizer(str(tmp_path), asked, False)
        assert type(found) is not MistralCommonBackend
        assert bool(found.chat_template) == bool(template or asked)
        assert found.eos_token == END

    def test_without_one_it_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"mistral-common's.*tokenizer\.json"):
            load_tokenizer(str(tmp_path), None, False)

    def test_wrapped_it_renders_as_that_does(self, tmp_path: Path) -> None:
        tiny_tokenizer(template=CHAT_TEMPLATE).save_pretrained(tmp_path)
        network, given = tiny_chat_model().network, MistralCommonBackend()
        given.name_or_path = str(tmp_path)
        assert render(wrap_model(network, given), "Hi") == render(tiny_chat_model(), "Hi")
        given.name_or_path = str(tmp_path / "nowhere")
        with pytest.raises(ModelError, match=r"or wrap\(model, PreTrainedTokenizerFast"):
            wrap_model(network, given)
