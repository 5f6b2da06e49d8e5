"""Thought and answer told apart, as text tags, special tokens and channels mark them."""

import pytest
from transformers import AddedToken, PreTrainedTokenizerFast

from steer2edit.models import LanguageModel, Reply
from steer2edit.models.reply import end_ids, reply_of
from tiny_chat import CHAT_TEMPLATE, END, tiny_chat_model, tiny_tokenizer

NO = "I'm sorry, but I can't help with that."


def model_with(*special: str, opening: str = "", mention: str = "") -> LanguageModel:
    """A model whose template writes the opening of a reply, and speaks of some marks."""
    template = CHAT_TEMPLATE.replace("assistant\n{%", f"assistant\n{opening}{{%") + f"{{# {mention} #}}"
    tokenizer: PreTrainedTokenizerFast = tiny_tokenizer(template=template)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in special])
    return tiny_chat_model(tokenizer=tokenizer)


def reply(model: LanguageModel, written: str) -> Reply:
    tokenizer = model.tokenizer
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Help <think> me."}], tokenize=False, add_generation_prompt=True
    )
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, written)]
    return reply_of(model, *ids, end_ids(model))


HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>")
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
PLAIN: tuple[str, ...] = ()
# special tokens, what the template opens, what is written; thought, answer
PARTS = [
    (PLAIN, "", f"<think>\nHm.\n</think>\n\n{NO}", "Hm.", NO),
    (PLAIN, "", f"<think>\n\n</think>\n\n{NO}", "", NO),
    (PLAIN, "<think>\n", f"Hm.\n</think>\n\n{NO}", "Hm.", NO),
    (PLAIN, "<think>\n", f"<think>Hm.</think>{NO}", "Hm.", NO),
    (PLAIN, "<think>\n\n</think>\n\n", NO, None, NO),
    (PLAIN, "<think>\n\n</think>\n\n", "The end is </think>.", None, "The end is </think>."),
    (PLAIN, "", "<think>\nI cannot? I can.\n</think>\n\nSure.", "I cannot? I can.", "Sure."),
    (PLAIN, "", "<think>Hm.</think><answer>\nSure.\n</answer>", "Hm.", "Sure."),
    (PLAIN, "", "<think>\nHm, well", "Hm, well", None),
    (PLAIN, "<think>\n", "Hm, well", "Hm, well", None),
    (PLAIN, "", "<thought>Hm.</thought>Sure.", "Hm.", "Sure."),
    (PLAIN, "", "Sure: <think> is a tag.", None, "Sure: <think> is a tag."),
    (PLAIN, "", "Sure: </think> is a tag.", None, "Sure: </think> is a tag."),  # this model knows no such mark
    (PLAIN, "", "Here is my thought process: two.", None, "Here is my thought process: two."),
    (PLAIN, "", "", None, ""),
    (("<think>", "</think>"), "", f"Hm.</think>{NO}", "Hm.", NO),  # the opening is in no template and not written
    (("<think>", "</think>"), "", NO, None, NO),
    (("[THINK]", "[/THINK]"), "", f"[THINK]Hm.[/THINK]{NO}", "Hm.", NO),
    (("[THINK]", "[/THINK]"), "", "[THINK]Hm.", "Hm.", None),
    (("<|channel>", "<channel|>"), "", "<|channel>thought\nHm.<channel|>Sure.", "Hm.", "Sure."),
    (("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"), "",
     "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Sure.<|END_RESPONSE|>", "Hm.", "Sure."),
    (HARMONY, "", f"{ANALYSIS}Hm.<|end|><|start|>assistant{FINAL}{NO}", "Hm.", NO),
    (HARMONY, "", f"{FINAL}{NO}", "", NO),
    (HARMONY, "", f"{ANALYSIS}Hm.<|end|><|start|>assistant", "Hm.", None),
    (HARMONY, "", "<|channel|>", "", None),
]  # fmt: skip


@pytest.mark.parametrize(("special", "opening", "written", "thought", "answer"), PARTS)
@pytest.mark.parametrize("end", ["", END])
def test_parts(
    special: tuple[str, ...], opening: str, written: str, thought: str | None, answer: str | None, end: str
) -> None:
    model = model_with(*special, opening=opening)
    found = reply(model, written + end)
    assert (found.thought, found.answer, found.finished) == (thought, answer, end != "")
    assert found.text == written  # all of it, with its marks
    assert model.tokenizer.decode(found.ids) == written
    said = model.tokenizer.decode(found.answer_ids, skip_special_tokens=True).strip()
    assert said.removeprefix("<answer>\n").removesuffix("\n</answer>") == (answer or "")


def test_plain_words_mark_a_thought_where_the_template_says_so() -> None:
    model = model_with(mention="Here is my response:")
    found = reply(model, f"Here is my thought process: one. Here is my response: {NO}")
    assert (found.thought, found.answer) == ("one.", NO)


def test_the_beginning_of_a_mark_is_no_answer() -> None:
    assert reply(model_with(mention="</think>"), "<th").answer is None
    assert reply(model_with(), "<th").answer == "<th"


def test_special_tokens_that_mark_nothing_are_not_shown() -> None:
    found = reply(model_with("<|pad|>"), f"<|pad|>{NO}<|pad|>")
    assert (found.text, found.answer, found.thought) == (NO, NO, None)


def test_a_reply_that_was_cut_off_is_shown_so() -> None:
    assert Reply("Sure", (1,), finished=False).shown == "Sure […]"
    assert Reply("Sure.", (1,), finished=True).shown == "Sure."
    assert Reply("<think>", (1,), finished=False, thought="").shown_answer is None
