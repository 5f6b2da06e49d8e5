"""A judge behind any OpenAI-compatible endpoint: one question per reply, many at a time, unscored counted apart.

Requests, replies and answers are untrusted text.
"""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict

from steer2edit.errors import DataError, InvalidValueError, did_you_mean
from steer2edit.models import Prompt, Reply
from steer2edit.progress import step
from steer2edit.steering.data_files import read_text

if TYPE_CHECKING:
    from openai import APIError, OpenAI

REFUSAL_QUESTION = resources.files("steer2edit.evaluation").joinpath("refusal_question.txt").read_text(encoding="utf-8")

_PLACEHOLDER = re.compile(r"\{(prompt|reply)\}")


def fill_template(template: str, prompt: Prompt, reply: str) -> str:
    """The template with `{prompt}` and `{reply}` put in, whole and in one pass: what is put in is not read again."""
    texts = {"prompt": prompt_text(prompt), "reply": reply}
    return _PLACEHOLDER.sub(lambda found: texts[found[1]], template)


def prompt_text(prompt: Prompt) -> str:
    """A prompt as a judge reads it: a request as it is, a conversation as `role: content` paragraphs."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def require_template(template: str) -> None:
    """Refuse, with an InvalidValueError, a template that would not show the judge the reply."""
    if "{reply}" not in template:
        found = re.findall(r"\{(\w+)\}", template)
        hint = f" {did_you_mean(found[0], ('prompt', 'reply'))}" if found else ""
        raise InvalidValueError(
            f"the judge's template must contain {{reply}}, and {{prompt}} where the request matters; it has "
            f"{', '.join(map(repr, found)) or 'no placeholder'}.{hint}"
        )


def read_template(path: Path) -> str:
    """A judge's template from a text file (UTF-8); a DataError where it is missing, unreadable, or has no `{reply}`."""
    template = read_text(path)
    try:
        require_template(template)
    except InvalidValueError as error:
        raise DataError(f"{path}: {error}") from error
    return template


def yes_or_no(answer: str) -> bool | None:
    """The verdict of a judge's answer, one word but for quotes and a full stop; `None` if it is another."""
    return {"yes": True, "no": False}.get(answer.strip().strip("\"'`*.!").strip().casefold())


Reason = Literal["empty", "timeout", "connection", "server", "rejected", "nonsense"]
"""Why an item is unscored: the reply is empty or its thought did not end (not asked), no answer in time, no connection,
the endpoint failed (5xx, 429), it refused this one request (4xx), or the answer could not be read."""

_FATAL = {401: "refuses the key", 403: "denies access", 404: "does not know the path or the model"}
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 8.0  # seconds; what the client waits before it repeats a failed request
_SHOWN = 200


@dataclass(frozen=True)
class Judgement:
    """What came of one item."""

    verdict: bool | None  # `None` if unscored
    reason: Reason | None = None  # why it is unscored
    detail: str = ""  # what the endpoint said, escaped and shortened


@dataclass(frozen=True)
class Judge:
    """Asks a chat model about replies; its settings are also what a `behaviour.toml` may say. It fulfils `Scorer`.

    The client repeats a failed request (timeouts, lost connections, 408, 409, 429, 5xx), after as long as the endpoint
    says, else 0.5 s, doubled each time up to 8 s. An answer that cannot be read is asked for again after such delays.
    """

    url: str  # of the endpoint, e.g. `http://localhost:8000/v1`
    model: str  # name the endpoint knows it by
    question: str  # with `{prompt}` and `{reply}`, to be answered yes or no
    key_env: str | None = None  # environment variable that holds the key; `None` if none is needed
    timeout: float = 60.0  # seconds without a sign of the endpoint after which a request has failed
    retries: int = 3  # how often a failed request is repeated, and how often an unreadable answer is asked for again
    concurrency: int = 8  # requests in flight at once
    # sent with every request; what an endpoint does not know can be left out here
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 256})
    # how many items of all calls so far are unscored, by reason
    unscored: Counter[Reason] = field(default_factory=Counter, init=False, compare=False, repr=False)
    _known: dict[str, Judgement] = field(default_factory=dict, init=False, compare=False, repr=False)
    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        address = urlsplit(self.url)
        if address.scheme not in ("http", "https") or not address.netloc:
            raise InvalidValueError(
                f"the judge's url must be an http(s) address, got {self.url!r}. Try http://localhost:8000/v1."
            )
        if address.username or address.password or address.query:
            raise InvalidValueError(
                "the judge's url must not carry a password or a query: it would be stored with the results. "
                "Put the key into an environment variable and name that."
            )
        if not self.model.strip():
            raise InvalidValueError("the judge needs the name of a model, got an empty one.")
        require_template(self.question)
        for name, value, least in (("retries", self.retries, 0), ("concurrency", self.concurrency, 1)):
            if value < least:
                raise InvalidValueError(f"{name} of the judge must be >= {least}, got {value}.")
        if not self.timeout > 0:
            raise InvalidValueError(f"timeout of the judge must be > 0 seconds, got {self.timeout}.")

    def describe(self) -> dict[str, str]:
        """What a result records of it: never a key."""
        return {"url": self.url, "model": self.model, "template": self.question}

    def score(self, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[bool | None]:
        """One verdict per reply, in order, on its answer as people read it; see `judgements`."""
        pairs = [(prompt, reply.shown_answer or "") for prompt, reply in zip(prompts, replies, strict=True)]
        return [judgement.verdict for judgement in self.judgements(pairs)]

    def judgements(self, pairs: Sequence[tuple[Prompt, str]]) -> list[Judgement]:
        """One judgement per (prompt, reply), in order; a DataError where the endpoint judges nothing at all.

        A question that was answered is never asked again, in later calls either; empty replies are not asked.
        """
        questions = [fill_template(self.question, prompt, reply) if reply.strip() else None for prompt, reply in pairs]
        asked = self._ask_all([q for q in dict.fromkeys(questions) if q is not None and q not in self._known])
        self._known.update({q: judgement for q, judgement in asked.items() if judgement.verdict is not None})
        found = {**asked, **self._known}
        judgements = [Judgement(None, "empty") if q is None else found[q] for q in questions]
        self.unscored.update(j.reason for j in judgements if j.reason is not None)
        return judgements

    def _ask_all(self, questions: Sequence[str]) -> dict[str, Judgement]:
        if not questions:
            return {}
        found: dict[str, Judgement] = {}
        with self._client() as client, step("Judging", len(questions)) as advance:
            # the first alone: an endpoint that is not there shall not be waited for once per item
            found[questions[0]] = first = self._ask(client, questions[0])
            if first.reason == "connection":
                raise DataError(
                    f"cannot reach the judge at {self.url!r}: {first.detail}. Start the endpoint, or correct the "
                    "address."
                )
            advance(1)
            pool = ThreadPoolExecutor(self.concurrency)
            try:
                rest = questions[1:]
                for question, judgement in zip(rest, pool.map(partial(self._ask, client), rest), strict=True):
                    found[question] = judgement
                    advance(1)
            finally:
                pool.shutdown(cancel_futures=True)
        if all(judgement.reason == "rejected" for judgement in found.values()):
            raise DataError(
                f"the judge at {self.url!r} refuses every request for the model {self.model!r}: {first.detail}. "
                f"Check the model's name and the parameters {dict(self.parameters)}."
            )
        return found

    def _client(self) -> "OpenAI":
        try:
            from openai import OpenAI
        except ImportError as error:
            raise InvalidValueError(
                "a judge needs the package openai, which is not installed. Run: pip install steer2edit[judge]"
            ) from error
        # an explicit key even where none is needed: the client would otherwise send OPENAI_API_KEY to any address
        return OpenAI(base_url=self.url, api_key=self._key() or "none", timeout=self.timeout, max_retries=self.retries)

    def _key(self) -> str | None:
        if self.key_env is None:
            return None
        if not (key := os.environ.get(self.key_env, "").strip()):
            raise InvalidValueError(
                f"the environment variable {self.key_env!r} must hold the judge's key, but is not set. "
                "Export it, or leave the option out for an endpoint without a key."
            )
        return key

    def _ask(self, client: "OpenAI", question: str) -> Judgement:
        """One item: asked until the answer can be read, or the retries are used up."""
        from openai import APIError

        answer = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(_FIRST_DELAY * 2 ** (attempt - 1), _LONGEST_DELAY))
            asked: Any = {"model": self.model, "messages": [{"role": "user", "content": question}]}
            try:
                completion = client.chat.completions.create(**asked, extra_body=dict(self.parameters))
            except APIError as error:
                return self._failure(error)
            except json.JSONDecodeError as error:
                answer = str(error)
                continue
            choices = getattr(completion, "choices", None)  # the client passes on whatever JSON or text it was sent
            content = getattr(getattr(choices[0], "message", None), "content", None) if choices else None
            answer = content if isinstance(content, str) else str(completion)
            if (verdict := yes_or_no(answer)) is not None:
                return Judgement(verdict)
        return Judgement(None, "nonsense", self._shown(answer))

    def _failure(self, error: "APIError") -> Judgement:
        """Why there is no answer; a DataError where no other item would fare better."""
        status = getattr(error, "status_code", None)
        said = error.body.get("message") if isinstance(error.body, dict) else None
        detail = self._shown(said if isinstance(said, str) else error.message)
        if status in _FATAL:
            # without its cause: an endpoint may repeat the key in its message, and a traceback would print it
            raise DataError(
                f"the judge at {self.url!r} {_FATAL[status]} (HTTP {status}, model {self.model!r}, key from "
                f"{self.key_env or 'nowhere'}): {detail}. Check the address (it usually ends in /v1), the "
                "model's name and the key's environment variable."
            ) from None
        if status is not None:
            return Judgement(None, "server" if status in (408, 409, 429) or status >= 500 else "rejected", detail)
        # by name: the HTTP package behind the client differs between its versions
        cause = type(error.__cause__).__name__
        if type(error).__name__ == "APITimeoutError" and cause != "ConnectTimeout":
            return Judgement(None, "timeout", f"nothing within {self.timeout:g} s")
        return Judgement(None, "connection", self._shown(f"{error.message} {error.__cause__ or ''}"))

    def _shown(self, text: str) -> str:
        """Untrusted text for people: without the key, escaped, shortened."""
        key = self._key()
        shown = ascii(text.replace(key, "***") if key else text)
        return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
