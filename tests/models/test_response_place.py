"""Where a given response stands: where the template writes the assistant's turn. Oracles are texts written by hand."""

import pytest

from steer2edit.errors import DataError
from steer2edit.models import LanguageModel, encode_prompts, encode_responses
from steer2edit.models.chat import render, render_turns
from tiny_chat import CHAT_TEMPLATE, tiny_chat_model, tiny_tokenizer

USER = "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
SPACED = "{% for m in messages %}" + USER + "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
LLAMA_2 = (
    "{% for m in messages %}" + USER + "{% else %} {{ m['content'].strip() }} {{ eos_token }}{% endif %}{% endfor %}"
)
PROMPT_HEAD = "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n"
EMPTY_THOUGHT = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{% if m['role'] == 'assistant' and '<think>' not in m['content'] %}<think>

</think>

{% endif %}{{ m['content'].strip() }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""
DROPS_THOUGHTS = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'].split('</think>')[-1] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""
USERS_ONLY = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
    "Q: {{ m['content'] }}\n{% endfor %}A: "
)
NO_REPLIES = "{% for m in messages if m['role'] == 'user' %}Q: {{ m['content'] }}\n{% endfor %}A: "


def model_with(template: str, **changes: object) -> LanguageModel:
    return tiny_chat_model(tokenizer=tiny_tokenizer(template=template, **changes))


@pytest.mark.parametrize(
    ("template", "response", "before", "written"),
    [
        (CHAT_TEMPLATE, " I can't", PROMPT_HEAD, " I can't"),
        (SPACED, "I can't", "[INST] How? [/INST] ", "I can't"),
        (LLAMA_2, "  I can't\n", "[INST] How? [/INST] ", "I can't"),
        (EMPTY_THOUGHT, "\nI can't", PROMPT_HEAD + "<think>\n\n</think>\n\n", "I can't"),
        (EMPTY_THOUGHT, "<think>\nHm.\n</think>\n\nNo", PROMPT_HEAD, "<think>\nHm.\n</think>\n\nNo"),
        (DROPS_THOUGHTS, "No", PROMPT_HEAD, "No"),
        (DROPS_THOUGHTS, "Hm.\n</think>\n\nNo", PROMPT_HEAD + "<think>\n", "Hm.\n</think>\n\nNo"),
        (USERS_ONLY, "No", "Q: How?\nA: ", "No"),
        (NO_REPLIES, "No", "Q: How?\nA: ", "No"),
    ],
    ids=[
        "glued",
        "space",
        "stripped",
        "empty thought",
        "own thought",
        "no thought",
        "dropped thought",
        "refused",
        "gone",
    ],
)
@pytest.mark.parametrize("trim_offsets", [False, True])
def test_the_response_is_where_the_template_writes_it(
    template: str, response: str, before: str, written: str, trim_offsets: bool
) -> None:
    model = model_with(template, trim_offsets=trim_offsets)
    assert model.tokenizer is not None
    (turn,) = render_turns(model, [("How?", response)])
    assert (turn.text[: turn.start], turn.text[turn.start : turn.end]) == (before, written)
    (encoded,) = encode_responses(model, [("How?", response)])
    assert list(encoded.ids) == model.tokenizer(before + written, add_special_tokens=False)["input_ids"]
    outside, inside = (
        model.tokenizer.decode(list(ids)) for ids in (encoded.ids[: encoded.start], encoded.response_ids)
    )
    assert before.startswith(outside)
    assert inside.endswith(written)
    assert len(before) - len(outside) <= 2  # what the first token has besides


def test_a_space_of_the_template_is_part_of_the_first_token() -> None:
    model = model_with(SPACED)
    assert model.tokenizer is not None
    (encoded,) = encode_responses(model, [("How?", "can't")])
    assert model.tokenizer.convert_ids_to_tokens(list(encoded.response_ids))[0] == "Ġcan"
    assert list(encoded.ids[: encoded.start]) == encode_prompts(model, ["How?"])[0]


@pytest.mark.parametrize("response", ["T", "<", ">", "think", "|", "\n\n"[:1] + "i", "s", "\ue000", "a\ue000"])
def test_a_response_that_the_template_writes_besides_is_not_mistaken(response: str) -> None:
    template = EMPTY_THOUGHT.replace("<|im_end|>", "<|im_end|>s T think|")
    (turn,) = render_turns(model_with(template), [("T think <s>", response)])
    assert turn.text[: turn.end].endswith(response.strip())
    assert turn.text[turn.start : turn.end].strip() == response.strip()
    assert turn.text[: turn.start].count("assistant\n") == 1


def test_every_choice_of_a_question_is_placed_by_itself() -> None:
    pairs = [("How?", "A"), ("Why?", "B"), ("How?", "C"), ("How?", "<think>x</think>y")]
    model = model_with(EMPTY_THOUGHT)
    assert render_turns(model, pairs) == [render_turns(model, [pair])[0] for pair in pairs]


def test_a_question_with_the_mark_in_it_is_asked_as_it_is() -> None:
    model = model_with(CHAT_TEMPLATE)
    (turn,) = render_turns(model, [("What is \ue000?", "Nothing")])
    assert turn.text[: turn.start] == render(model, "What is \ue000?")


def test_a_template_that_refuses_the_question_is_an_error() -> None:
    with pytest.raises(DataError, match=r"rejects the prompt 'How\?'.*no such"):
        encode_responses(model_with("{{ raise_exception('no such') }}"), [("How?", "So")])


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, SPACED, LLAMA_2, EMPTY_THOUGHT, DROPS_THOUGHTS, NO_REPLIES])
def test_a_tokenizer_without_offsets_finds_the_same_tokens(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    pairs = [("How?", "can't help"), ("How?", "\n\nOne"), ("Why not?", "Hm.\n</think>\n\nNo")]
    model = model_with(template)
    by_offsets = encode_responses(model, pairs)
    monkeypatch.setattr(type(model.tokenizer), "is_fast", False)
    assert encode_responses(model, pairs) == by_offsets
