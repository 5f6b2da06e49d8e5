"""Prompts into tokens. The oracle is the bytes of the tokens: where the prompt ends and the response begins."""

from collections.abc import Sequence

import pytest
from hypothesis import assume, example, given, strategies as st
from transformers import PreTrainedTokenizer

from families import tiny_model, tiny_network
from steer2edit.errors import DataError, ModelError
from steer2edit.models import (
    EncodedResponse,
    LanguageModel,
    Prompt,
    Sampling,
    encode_prompts,
    encode_responses,
    generate,
)
from tiny_chat import BEGIN, CHAT_TEMPLATE, END, END_OF_TEXT, chatml, tiny_chat_model, tiny_tokenizer

MODEL = tiny_chat_model()  # as SmolLM2: offsets as they are
TRIMMING = tiny_chat_model(tokenizer=tiny_tokenizer(trim_offsets=True))  # as GPT-NeoX: offsets without spaces

PIECES = st.one_of(
    st.sampled_from([" ", "  ", "\n", "\n\n", "\n ", "\t", "😀", "é", "I", "'m", " sorry", "can't", "你好", END, "a"]),
    st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=4),
)
TEXTS = st.lists(PIECES, min_size=1, max_size=8).map("".join).filter(lambda text: bool(text.strip()))


def bytes_of(model: LanguageModel, ids: Sequence[int]) -> bytes:
    """What byte-level tokens stand for, without the tokenizer's decoder: GPT-2's table of printable stand-ins."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    assert model.tokenizer is not None
    tokens = model.tokenizer.convert_ids_to_tokens(list(ids))
    special = (END_OF_TEXT, BEGIN, END)
    return b"".join(t.encode() if t in special else bytes(table[c] for c in t) for t in tokens)


def assert_exact_boundary(model: LanguageModel, encoded: EncodedResponse, rendered: str, response: str) -> None:
    head, whole = rendered.encode(), (rendered + response).encode()
    ids, start = encoded.ids, encoded.start
    assert bytes_of(model, ids) == whole
    assert len(bytes_of(model, ids[:start])) <= len(head)  # no byte of the response is outside the span
    assert len(bytes_of(model, ids[: start + 1])) > len(head)  # and every token in it has one
    assert encoded.response_ids == ids[start:]
    assert encoded.span == range(start - 1, len(ids) - 1)


class TestBoundary:
    @given(prompt=TEXTS, response=TEXTS)
    @example(prompt="hi", response="\n\nnewlines that merge with the template's own")
    @example(prompt="hi", response="  two spaces: one merges with the template's newline")
    @example(prompt="hi", response="😀")
    @example(prompt="ends with a space ", response=" begins with one")
    def test_span_is_exactly_the_response(self, prompt: str, response: str) -> None:
        (encoded,) = encode_responses(MODEL, [(prompt, response)])
        assert_exact_boundary(MODEL, encoded, chatml(prompt), response)

    @given(prompt=TEXTS, response=TEXTS)
    @example(prompt="hi", response="\n  a list")
    def test_span_with_trimmed_offsets(self, prompt: str, response: str) -> None:
        assume(not response.startswith(" "))  # see the two tests below
        (encoded,) = encode_responses(TRIMMING, [(prompt, response)])
        assert_exact_boundary(TRIMMING, encoded, chatml(prompt), response)

    @pytest.mark.parametrize("response", [" one space", " 'quoted'", " 1"])
    def test_leading_space_with_trimmed_offsets(self, response: str) -> None:
        (encoded,) = encode_responses(TRIMMING, [("hi", response)])
        assert_exact_boundary(TRIMMING, encoded, chatml("hi"), response)

    @pytest.mark.parametrize("response", ["  two spaces", " \n a space and a newline", f" {END}"])
    def test_straddling_space_with_trimmed_offsets(self, response: str) -> None:
        (encoded,) = encode_responses(TRIMMING, [("hi", response)])
        assert_exact_boundary(TRIMMING, encoded, chatml("hi"), response)

    def test_span_by_hand(self) -> None:
        # <|im_start|> us er \n h i <|im_end|> \n <|im_start|> assistant \n | H el l o: the last prompt token predicts H
        (encoded,) = encode_responses(MODEL, [("hi", "Hello")])
        tokens = MODEL.tokenizer.convert_ids_to_tokens(list(encoded.ids))
        assert tokens[encoded.start - 2 :] == ["assistant", "Ċ", "H", "el", "l", "o"]
        assert encoded.span == range(encoded.start - 1, encoded.start + 3)
        assert tokens[encoded.span.start] == "Ċ"
        assert len(encoded.span) == len(encoded.response_ids) == 4

    def test_tokenising_apart_would_be_wrong(self) -> None:
        # the template's "\n" and the response's first "\n" are one token, so tokenising the prompt alone gives another
        # boundary than the text has. The straddling token counts as the response's.
        (encoded,) = encode_responses(MODEL, [("hi", "\n\nHello")])
        (alone,) = encode_prompts(MODEL, ["hi"])
        assert list(encoded.ids[: len(alone)]) != alone
        assert bytes_of(MODEL, encoded.response_ids) == b"\n\n\nHello"

    def test_batch_equals_one_by_one(self) -> None:
        pairs: list[tuple[Prompt, str]] = [("a", "one two three"), ("a longer prompt", "\n\n1"), ("b", "😀😀")]
        assert encode_responses(MODEL, pairs) == [encode_responses(MODEL, [pair])[0] for pair in pairs]
        assert encode_responses(MODEL, []) == []


class TestTemplate:
    @given(prompt=TEXTS)
    def test_prompt_is_rendered_once_up_to_the_reply(self, prompt: str) -> None:
        (ids,) = encode_prompts(MODEL, [prompt])
        assert bytes_of(MODEL, ids) == chatml(prompt).encode()

    def test_messages(self) -> None:
        messages: Prompt = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Bye"},
        ]
        rendered = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        rendered += "<|im_start|>assistant\n"
        (ids,) = encode_prompts(MODEL, [messages])
        assert bytes_of(MODEL, ids) == rendered.encode()
        (encoded,) = encode_responses(MODEL, [(messages, "Farewell")])
        assert_exact_boundary(MODEL, encoded, rendered, "Farewell")

    def test_a_string_is_one_user_message(self) -> None:
        assert encode_prompts(MODEL, ["Hi"]) == encode_prompts(MODEL, [[{"role": "user", "content": "Hi"}]])

    def test_no_special_tokens_are_added_to_the_template(self) -> None:
        # a template writes its own begin-of-sequence token; the tokenizer must not write a second one
        from tokenizers.processors import TemplateProcessing

        tokenizer = tiny_tokenizer()
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
        )
        model = tiny_chat_model(tokenizer=tokenizer)
        assert tokenizer("x")["input_ids"][0] == 0  # otherwise the test would show nothing
        assert encode_prompts(model, ["Hi"]) == encode_prompts(MODEL, ["Hi"])
        assert encode_responses(model, [("Hi", "Yo")]) == encode_responses(MODEL, [("Hi", "Yo")])


class TestBadInput:
    @pytest.mark.parametrize("response", ["", "  ", "\n\n"])
    def test_empty_response(self, response: str) -> None:
        with pytest.raises(DataError, match="the response to 'Why\\?' is empty"):
            encode_responses(MODEL, [("Fine", "yes"), ("Why?", response)])

    @pytest.mark.parametrize("prompt", ["", " \n", [], [{"role": "user", "content": " "}]])
    def test_empty_prompt(self, prompt: Prompt) -> None:
        with pytest.raises(DataError, match="must not be empty"):
            encode_prompts(MODEL, [prompt])
        with pytest.raises(DataError, match="must not be empty"):
            encode_responses(MODEL, [(prompt, "yes")])

    def test_longer_than_the_context(self) -> None:
        model = tiny_chat_model(max_position_embeddings=40)
        (ids,) = encode_prompts(model, ["short"])
        room = 40 - len(ids)
        assert encode_prompts(model, ["short"], room=room) == [ids]  # it just fits
        with pytest.raises(DataError, match=r"'short'.*needs 41 tokens.*context of 'tiny-llama' is 40"):
            encode_prompts(model, ["short"], room=room + 1)
        with pytest.raises(DataError, match=r"'qqq.*context of 'tiny-llama' is 40\. Shorten it.*shorter replies"):
            encode_prompts(model, ["q" * 50])
        with pytest.raises(DataError, match="context of 'tiny-llama' is 40"):
            encode_responses(model, [("short", "q" * 50)])
        with pytest.raises(DataError, match="'the request'"):
            encode_responses(model, [([{"role": "user", "content": "the request"}], "q" * 50)])

    def test_no_chat_template(self) -> None:
        model = tiny_chat_model(tokenizer=tiny_tokenizer(template=None))
        for use in (
            lambda: encode_prompts(model, ["Hi"]),
            lambda: encode_responses(model, [("Hi", "Yo")]),
        ):
            with pytest.raises(ModelError, match=r"'tiny-llama' has no chat template\. Pass --chat-template FILE"):
                use()

    def test_no_tokenizer(self) -> None:
        with pytest.raises(ModelError, match="'tiny-llama' was loaded without a tokenizer"):
            encode_prompts(tiny_model(), ["Hi"])

    def test_template_that_rejects_a_prompt(self) -> None:
        template = "{{ raise_exception('roles must alternate') }}"
        model = tiny_chat_model(tokenizer=tiny_tokenizer(template=template))
        with pytest.raises(DataError, match="rejects the prompt 'Hi': roles must alternate"):
            encode_prompts(model, ["Hi"])


def test_no_pad_token_is_needed() -> None:
    model = tiny_chat_model(tokenizer=tiny_tokenizer(pad=False))
    assert model.tokenizer is not None
    assert model.tokenizer.pad_token is None
    prompts = ["Hi", "a longer prompt than the first"]
    assert encode_prompts(model, prompts) == encode_prompts(MODEL, prompts)
    pairs: list[tuple[Prompt, str]] = [(prompt, "One two") for prompt in prompts]
    assert encode_responses(model, pairs) == encode_responses(MODEL, pairs)
    assert generate(model, prompts, Sampling(6)) == generate(MODEL, prompts, Sampling(6))


class CharacterTokenizer(PreTrainedTokenizer):
    """A tokenizer in plain Python: one token a character, no offsets."""

    def __init__(self) -> None:
        self.characters = [chr(c) for c in range(10, 127)]
        super().__init__(unk_token="?")
        self.add_special_tokens({"additional_special_tokens": [BEGIN, END]})
        self.chat_template = CHAT_TEMPLATE

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def get_vocab(self) -> dict[str, int]:
        return {c: i for i, c in enumerate(self.characters)} | self.added_tokens_encoder

    def _tokenize(self, text: str, **kwargs: object) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.characters.index(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.characters[index]


class TestTokenizerWithoutOffsets:
    tokenizer = CharacterTokenizer()
    model = LanguageModel(tiny_network("llama", vocab_size=128), tokenizer, name="slow")

    def test_it_takes_the_other_path(self) -> None:
        assert not self.tokenizer.is_fast
        assert "offset_mapping" not in self.tokenizer(["text"], return_offsets_mapping=True)

    @pytest.mark.parametrize("response", ["Hello", " hello", "\n\nhello", "a  b "])
    def test_boundary(self, response: str) -> None:
        pairs: list[tuple[Prompt, str]] = [("Why?", response), ("Another one ", "x")]
        first, second = encode_responses(self.model, pairs)
        assert "".join(self.tokenizer.convert_ids_to_tokens(list(first.ids))) == chatml("Why?") + response
        assert "".join(self.tokenizer.convert_ids_to_tokens(list(first.response_ids))) == response
        assert "".join(self.tokenizer.convert_ids_to_tokens(list(second.ids[: second.start]))) == chatml("Another one ")
        assert list(first.ids[: first.start]) == encode_prompts(self.model, ["Why?"])[0]

    def test_bad_input(self) -> None:
        with pytest.raises(DataError, match="is empty"):
            encode_responses(self.model, [("Why?", " ")])
        with pytest.raises(DataError, match="is 128"):
            encode_responses(self.model, [("Why?", "x" * 128)])
