"""What must not become a prompt: files that are no template, templates that drop text, tokens without a row."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from families import tiny_network
from steer2edit.errors import DataError, ModelError
from steer2edit.models import (
    EncodedResponse,
    LanguageModel,
    Prompt,
    Sampling,
    encode_prompts,
    encode_responses,
    generate,
    load_model,
)
from steer2edit.models.chat_format import load_tokenizer, read_template
from steer2edit.models.rendering import render
from tiny_chat import CHAT_TEMPLATE, END, tiny_chat_model, tiny_tokenizer

ONLY_SYSTEM = "{% for m in messages if m['role'] == 'system' %}{{ m['content'] }}{% endfor %}:\n"
NO_SYSTEM = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] | trim }}\n{% endfor %}"
NAMED = [{"name": "default", "template": CHAT_TEMPLATE}, {"name": "tool_use", "template": "x"}, "?"]


class TestTemplateFiles:
    @pytest.mark.parametrize(
        ("content", "right"),
        [
            (CHAT_TEMPLATE, CHAT_TEMPLATE),
            ("\ufeff" + CHAT_TEMPLATE, CHAT_TEMPLATE),
            (json.dumps({"chat_template": CHAT_TEMPLATE}), CHAT_TEMPLATE),
            (json.dumps({"bos_token": "<s>", "chat_template": NAMED}), {"default": CHAT_TEMPLATE, "tool_use": "x"}),
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

    def test_named_templates_render_by_the_default_one(self, tmp_path: Path) -> None:
        model = tiny_chat_model()
        model.network.save_pretrained(tmp_path)
        model.tokenizer.save_pretrained(tmp_path)
        (tmp_path / "t.json").write_text(json.dumps({"chat_template": NAMED}))
        loaded = load_model(str(tmp_path), device="cpu", chat_template=str(tmp_path / "t.json"))
        assert encode_prompts(loaded, ["Hi"]) == encode_prompts(model, ["Hi"])

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
    """As transformers' class of this name: tokens of a conversation, no template, no offsets, nothing added."""

    def __init__(self) -> None:
        super().__init__(tokenizer_object=tiny_tokenizer().backend_tokenizer, eos_token=END)

    @property
    def is_fast(self) -> bool:
        raise AttributeError("is_fast")

    def apply_chat_template(  # type: ignore[override]
        self, messages: Any, *, tokenize: bool, return_dict: bool, continue_final_message: bool = False,
        add_generation_prompt: bool = False,
    ) -> list[int]:  # fmt: skip
        assert tokenize
        assert not return_dict
        if messages[-1]["role"] == "assistant" and not continue_final_message:
            raise ValueError("Expected last role User")
        ids = [1]
        for message in messages:
            own = self(message["content"], add_special_tokens=False)["input_ids"]
            ids += own if message["role"] == "assistant" else [0, *own, 2]
        return ids


class TestMistralCommon:
    def test_its_own_tokens(self) -> None:
        model = LanguageModel(tiny_network("llama", vocab_size=384), MistralCommonBackend(), name="tiny")
        own = tiny_tokenizer()
        asked = [1, 0, *own("How?")["input_ids"], 2]
        assert encode_prompts(model, ["How?"]) == [asked]
        said = own("I can't")["input_ids"]
        assert encode_responses(model, [("How?", "I can't")]) == [EncodedResponse((*asked, *said), len(asked))]
        assert len(generate(model, ["How?"], Sampling(2))[0].ids) <= 2

    def test_it_takes_no_template(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: MistralCommonBackend())
        assert type(load_tokenizer(str(tmp_path), None, False)) is MistralCommonBackend
        with pytest.raises(ModelError, match="mistral-common"):
            load_tokenizer(str(tmp_path), "none", False)

    @pytest.mark.parametrize(
        ("template", "asked", "right"),
        [(CHAT_TEMPLATE, None, PreTrainedTokenizerFast), (None, "none", PreTrainedTokenizerFast),
         (None, None, MistralCommonBackend)],
    )  # fmt: skip
    def test_a_tokenizer_json_is_taken_where_there_is_a_template(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, template: str | None, asked: str | None, right: type
    ) -> None:
        tiny_tokenizer(template=template).save_pretrained(tmp_path)
        monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: MistralCommonBackend())
        assert isinstance(load_tokenizer(str(tmp_path), asked, False), right)

    def test_the_package_itself(self, tmp_path: Path) -> None:
        package = pytest.importorskip("mistral_common")
        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=131072, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, max_position_embeddings=256,
        )  # fmt: skip
        MistralForCausalLM(config).save_pretrained(tmp_path)
        data = Path(package.__file__).parent / "data" / "tekken_240911.json"
        (tmp_path / "tekken.json").write_bytes(data.read_bytes())
        model = load_model(str(tmp_path), device="cpu")
        assert encode_prompts(model, ["Hi"]) == [[1, 3, 37133, 4]]  # <s>[INST]Hi[/INST]
        assert encode_responses(model, [("Hi", "I cannot.")])[0].start == 4
        (tmp_path / "chat_template.jinja").write_text("<s>[INST]{{ messages[0]['content'] }}[/INST]")
        other = load_model(str(tmp_path), device="cpu")
        assert encode_prompts(other, ["Hi"]) == [[1, 3, 37133, 4]]
        assert other.tokenizer.is_fast
