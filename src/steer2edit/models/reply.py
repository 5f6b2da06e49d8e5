"""What a reply is: where it ends, and what it says as a thought and as an answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from steer2edit.errors import DataError
from steer2edit.models.chat import embedding_rows, render, render_turns, require_rows, tokenizer_of
from steer2edit.models.chat_format import decoded
from steer2edit.models.language_model import LanguageModel
from steer2edit.models.thoughts import find_thought

CUT = " […]"
"""Follows a reply that was cut off, wherever it is shown or kept."""


@dataclass(frozen=True)
class Reply:
    """A generated reply."""

    text: str  # all that was written; without special tokens, save where they mark a thought
    ids: tuple[int, ...]  # its tokens, without the end token
    finished: bool  # whether it ended by itself; a reply that was cut off is not short
    thought: str | None = None  # what the model wrote to itself before it answered; `None` where it wrote no thought
    # what it says to the user, without special tokens: the text itself where there is no thought, `None` where the
    # thought did not end. Such a reply cannot be scored.
    answer: str | None = None
    answer_ids: tuple[int, ...] = ()  # the answer's tokens
    thought_ids: tuple[int, ...] = ()  # the thought's, without its marks

    def __post_init__(self) -> None:
        if self.thought is None:
            object.__setattr__(self, "answer", self.text)
            object.__setattr__(self, "answer_ids", self.ids)

    @property
    def shown(self) -> str:
        """The text as people read it: with a mark where it was cut off."""
        return self.text if self.finished else self.text + CUT

    @property
    def shown_answer(self) -> str | None:
        """The answer as people read it; `None` where there is none, or an empty one."""
        return self.answer if self.finished or not self.answer else self.answer + CUT

    def saying(self, answer: str) -> "Reply":
        """A reply with another answer, such as a part of this one."""
        return Reply(answer, (), self.finished)


_AROUND_ANSWERS = (
    ("<answer>", "</answer>"),
    ("<response>", "</response>"),
    ("<Output>", "</Output>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("", "[END FINAL RESPONSE]"),
)


def reply_of(model: LanguageModel, prompt: Sequence[int], row: Sequence[int], ends: Sequence[int]) -> Reply:
    """The reply that generated tokens make, up to the first end token."""
    tokenizer = tokenizer_of(model)
    stop = next((i for i, token in enumerate(row) if token in ends), None)
    ids, finished = tuple(row if stop is None else row[:stop]), stop is not None
    found = find_thought(tokenizer, prompt, ids)
    if found is None:
        return Reply(str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip(), ids, finished)
    raw, form = decoded(tokenizer, ids), found.form
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special = added.union(tokenizer.all_special_tokens)
    written, _, behind = raw.partition(form.closes)
    thought = _without(_without(written.strip().removeprefix(form.opens), form.labels), special).strip()
    thought_ids = ids[found.thought.start : found.thought.stop]
    if found.answer is None:
        return Reply(raw.strip(), ids, finished, thought, thought_ids=thought_ids)
    answer = _without(behind, special).strip()
    for before, after in _AROUND_ANSWERS:
        answer = answer.removeprefix(before).removesuffix(after).strip()
    return Reply(raw.strip(), ids, finished, thought, answer, ids[found.answer.start :], thought_ids)


def _without(text: str, marks: Iterable[str]) -> str:
    for mark in marks:
        text = text.replace(mark, "")
    return text


def end_ids(model: LanguageModel) -> list[int]:
    """Tokens that end a reply: all that the checkpoint, the tokenizer or the chat template names.

    A configuration's class has a default for it, so what it names must be a special or added token of the tokenizer.
    """
    network, tokenizer = model.network, model.tokenizer
    declared = _listed(getattr(network.generation_config, "eos_token_id", None))
    if tokenizer is None:
        return declared
    configs = (network.config, network.config.get_text_config())
    named = [getattr(config, "eos_token_id", None) for config in configs]
    others = [token for one in (*named, tokenizer.eos_token_id, turn_end(model)) for token in _listed(one)]
    marks, rows = _marks(tokenizer), embedding_rows(model)
    declared = [token for token in declared if token < rows or token in marks]
    ends = list(dict.fromkeys([*declared, *(token for token in others if token in marks)]))
    require_rows(model, ends, "what ends a reply")
    return ends


def turn_end(model: LanguageModel) -> int | None:
    """The token that the chat template writes behind an assistant's last message; `None` where it writes none.

    It is the first special or added token there that the template does not write within a reply as well.
    """
    tokenizer = model.tokenizer
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        return None
    try:
        prompt, (answered,) = render(model, "Hello"), render_turns(model, [("Hello", "Hello")])
    except DataError:
        return None
    before, behind = answered.text[: answered.start], answered.text[answered.end :]
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, before, strict=False)))
    inside, outside = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before[shared:], behind))
    return next((token for token in outside if token in _marks(tokenizer).difference(inside)), None)


def _listed(tokens: Any) -> list[int]:
    if tokens is None:
        return []
    return [int(token) for token in tokens] if isinstance(tokens, Iterable) else [int(tokens)]


def _marks(tokenizer: Any) -> set[int]:
    """Tokens that are no text of their own: special ones, and those added to the vocabulary."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
