"""Where replies end: at any token that checkpoint, tokenizer or template names, and at none written within a reply."""

import pytest
import torch
from transformers import GenerationConfig

from steer2edit.models import LanguageModel, Sampling, generate
from steer2edit.models.reply import end_ids, turn_end
from tiny_chat import BEGIN, CHAT_TEMPLATE, END, END_OF_TEXT, tiny_chat_model, tiny_tokenizer

USER = "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}{% else %}"
CLOSE = "{% endif %}{% endfor %}"


def model_with(template: str, eos: str | None = END_OF_TEXT) -> LanguageModel:
    tokenizer = tiny_tokenizer(template=template)
    tokenizer.eos_token = eos
    model = tiny_chat_model(tokenizer=tokenizer)
    model.network.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    model.network.config.eos_token_id = None
    return model


def names(model: LanguageModel, ids: list[int]) -> set[str]:
    return set(model.tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHAT_TEMPLATE, END),  # a newline follows it
        (USER + "{{ m['content'] }}<|im_end|>" + CLOSE, END),
        (USER + "{{ m['content'] | trim }}\n<|im_end|>\n" + CLOSE, END),  # a newline stands before it
        (USER + "{{ m['content'] }}" + CLOSE, None),  # it writes nothing
        (USER + "{{ m['content'] }}\n\n### Instruction:\n" + CLOSE, None),  # it writes only text
        (USER + "<|im_end|>{{ m['content'] }}<|im_end|><|endoftext|>" + CLOSE, END_OF_TEXT),  # also within a reply
        (USER + "{{ raise_exception('no assistant') }}" + CLOSE, None),
        (USER + "something else" + CLOSE, None),
    ],
)
def test_the_template_ends_a_turn(template: str, end: str | None) -> None:
    model = model_with(template)
    assert turn_end(model) == (None if end is None else model.tokenizer.convert_tokens_to_ids(end))
    assert names(model, end_ids(model)) == {END_OF_TEXT, *([] if end is None else [end])}


def test_the_tokenizer_and_the_config_name_ends_too() -> None:
    model = model_with(USER + "{{ m['content'] }}" + CLOSE, eos=END)
    assert names(model, end_ids(model)) == {END_OF_TEXT, END}
    model.tokenizer.eos_token = None
    assert names(model, end_ids(model)) == {END_OF_TEXT}
    model.network.config.eos_token_id = model.tokenizer.convert_tokens_to_ids([BEGIN])
    assert names(model, end_ids(model)) == {END_OF_TEXT, BEGIN}
    model.network.config.eos_token_id = 70  # the default of a class: here a letter, which ends nothing
    assert names(model, end_ids(model)) == {END_OF_TEXT}


def test_a_reply_ends_with_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with(CHAT_TEMPLATE)
    runs_on = f"one{END}\n{BEGIN}user\nAnother?{END}"
    written = model.tokenizer(runs_on, return_tensors="pt", add_special_tokens=False)["input_ids"]

    def write(input_ids: torch.Tensor, generation_config: GenerationConfig, **_: object) -> torch.Tensor:
        assert set(generation_config.eos_token_id) == set(end_ids(model))
        return torch.cat([input_ids, written], dim=1)

    monkeypatch.setattr(model.network, "generate", write)
    (reply,) = generate(model, ["Say one."], Sampling(64))
    assert (reply.text, reply.finished) == ("one", True)
