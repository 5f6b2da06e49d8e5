"""Which part of a reply is a thought and which the answer.

Families mark a thought in ways of their own. Which one applies is told from the reply itself, from what the chat
template has written before it, and from the tokenizer's vocabulary.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from steer2edit.models.chat_format import decoded

_TAIL = 32  # tokens of a prompt that show whether the template has begun a thought


@dataclass(frozen=True)
class ThoughtForm:
    """How a family marks a thought."""

    opens: str  # what it begins with
    closes: str  # what the answer begins behind
    labels: tuple[str, ...] = ()  # what stands within it and is no part of it


FORMS = (
    ThoughtForm("<think>", "</think>"),  # Qwen, DeepSeek, SmolLM3, GLM, EXAONE 4, Nemotron, OLMo, Hunyuan, most others
    ThoughtForm("<thinking>", "</thinking>"),
    ThoughtForm("<thought>", "</thought>"),  # EXAONE Deep
    ThoughtForm("<Thought>", "</Thought>"),  # Marco
    ThoughtForm("<seed:think>", "</seed:think>"),  # Seed
    ThoughtForm("◁think▷", "◁/think▷"),  # Kimi
    ThoughtForm("[THINK]", "[/THINK]"),  # Mistral
    ThoughtForm("<|START_THINKING|>", "<|END_THINKING|>"),  # Command
    ThoughtForm("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ThoughtForm("<|begin_of_thought|>", "<|end_of_thought|>"),  # OpenThinker
    ThoughtForm("<|channel>", "<channel|>", ("thought\n",)),  # Gemma 4
    ThoughtForm(  # the harmony format of gpt-oss: messages in channels
        "<|channel|>",
        "<|channel|>final<|message|>",
        ("<|end|><|start|>assistant", "analysis<|message|>", "commentary<|message|>"),
    ),
    ThoughtForm("Here is my thought process:", "Here is my response:"),  # Granite 3.2
    ThoughtForm("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),  # Apriel
)


@dataclass(frozen=True)
class Thought:
    """Where a reply's thought is."""

    form: ThoughtForm
    thought: range  # its tokens among the reply's, without the marks
    answer: range | None  # the tokens of the answer; `None` where the thought did not end


def begun_thought(prompt: str) -> ThoughtForm | None:
    """How the thought is marked that a rendered prompt ends with the beginning of."""
    return next((form for form in FORMS if prompt.rstrip().endswith(form.opens)), None)


def find_thought(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], ids: Sequence[int]) -> Thought | None:
    """Where the thought of a reply is; `None` where it has none."""
    raw = decoded(tokenizer, ids)
    form = _form(tokenizer, decoded(tokenizer, prompt[-_TAIL:]).rstrip(), raw)
    if form is None:
        return None
    begin = _behind(tokenizer, ids, form.opens) if raw.lstrip().startswith(form.opens) else 0
    if form.closes not in raw:
        return Thought(form, range(begin, len(ids)), None)
    behind = _behind(tokenizer, ids, form.closes)
    mark = next(i for i in reversed(range(behind)) if form.closes in decoded(tokenizer, ids[i:behind]))
    return Thought(form, range(min(begin, mark), mark), range(behind, len(ids)))


def _behind(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], mark: str) -> int:
    """The first token behind a mark that is there."""
    return bisect_left(range(len(ids)), True, key=lambda i: mark in decoded(tokenizer, ids[:i]))


def _form(tokenizer: PreTrainedTokenizerBase, prompt: str, raw: str) -> ThoughtForm | None:
    """How the thought of a reply is marked; `None` where it has none.

    A reply has one if it begins with one, whatever the model; if the template has begun one; and, in a model that is
    known to think (the end of such thoughts is in the vocabulary, or the chat template speaks of it), if one ends in it
    or its mark is all that there was room for.
    """
    begin = raw.lstrip()
    for form in FORMS:
        spoken = form.opens[0].isalpha()  # plain words, which any model may say
        if prompt.endswith(form.opens) or (begin.startswith(form.opens) and not spoken):
            return form
        hinted = begin.startswith(form.opens) or form.closes in raw or (begin and form.opens.startswith(begin))
        if hinted and not prompt.endswith(form.closes):
            token = tokenizer.convert_tokens_to_ids(form.closes)
            if form.closes in str(tokenizer.chat_template) or token not in (None, tokenizer.unk_token_id):
                return form
    return None
