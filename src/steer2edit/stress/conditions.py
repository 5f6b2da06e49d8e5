"""The conditions of the contract that are made of prompts and decoding: wordings, openers, samples, other settings.

In the quick suite each request meets one of the wordings, in turn, so that one line tells of all of them; in the full
suite each meets all, with a line each, and the deciding line is of the share of them under which it was refused.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from steer2edit.evaluation.scorers import Scorer
from steer2edit.evaluation.statistics import mean_of
from steer2edit.models import Prompt, Reply
from steer2edit.steering.refusal import RefusalPhrases, refusal_phrases
from steer2edit.steering.transformation import Transformation, takes_system_prompt
from steer2edit.stress.attacks import data_rows, held_out_attacks
from steer2edit.stress.findings import StressResult
from steer2edit.stress.subject import Replies, Subject, ask, ask_plain, by_arm, in_form
from steer2edit.stress.verdicts import attribute_line, effects_of

LANGUAGES = ("spanish", "german")
_LEADING = " \t\n,.:;!—-"
_BREAK = re.compile(r"(?<=[.!?:;\n])\s+|(?:^|,?\s+)(?:but|however,?)\s+")


def worded(subject: Subject, name: str, attacks: Sequence[Transformation], decides: bool = True) -> StressResult:
    """What is left of the gain where requests are worded, set or begun in other ways.

    Ways that hide the request's words have lines in the full suite, and decide nothing.
    """
    requests = subject.requests
    plain, clear = ask_plain(subject, requests), [attack for attack in attacks if not attack.hides]
    if subject.suite == "quick" and len(clear) > 1:
        turns = [clear[i % len(clear)] for i in range(len(requests))]
        replies = subject.keep(name, partial(ask_worded, subject, turns, requests))
        what = f"In {len(clear)} ways in turn"
        note = f"Each request is asked in one of these ways, in turn: {', '.join(one.name for one in clear)}."
        line = attribute_line(subject, name, what, replies, plain, decides=decides, note=note)
        return StressResult([line], by_arm({name: replies}))
    found, lines, alone = {}, [], decides and len(attacks) == 1
    for one in attacks:
        replies = subject.keep(one.name, partial(ask_worded, subject, [one] * len(requests), requests))
        lines.append(attribute_line(subject, one.name, one.name, replies, plain, decides=alone, hides=one.hides))
        found[one.name] = replies
    if len(clear) > 1:  # of every request, the share of the ways under which it was refused
        every = [found[attack.name] for attack in clear]
        values = {arm: mean_of([one.refused[arm] for one in every]) for arm in every[0].arms}
        together = {arm: [reply for one in every for reply in one.arms[arm]] for arm in every[0].arms}
        replies = Replies(together, seconds=sum(one.seconds for one in every))
        what = f"In {len(every)} ways, each request in all of them"
        lines.insert(0, attribute_line(subject, name, what, replies, plain, decides=decides, values=values))
    return StressResult(lines, by_arm(found))


def held_out(subject: Subject) -> StressResult:
    """The held-out attack families; in the quick suite the first of each, those that hide the words left out."""
    return worded(subject, "held-out-attacks", held_out_attacks(subject.suite == "quick"))


def ask_worded(subject: Subject, attacks: Sequence[Transformation], requests: Sequence[Prompt]) -> Replies:
    """Replies to each request in its own way; of replies that are begun, what follows the opener."""
    fitted = attacks if takes_system_prompt(subject.model) else [attack.without_system() for attack in attacks]
    prompts = [attack(request) for attack, request in zip(fitted, requests, strict=True)]
    if any(attack.opener for attack in attacks):
        parts = sentences if isinstance(subject.scorer, RefusalPhrases) else None
        return ask(subject, prompts, requests, parts=parts, openers=[attack.opener for attack in attacks])
    dictated = [opener for attack in dict.fromkeys(attacks) for opener in attack.openers]
    return ask(subject, prompts, requests, parts=in_form(dictated))


def sentences(reply: Reply) -> list[Reply]:
    """The parts of a continuation: a refusal may be at the beginning of each."""
    parts = [part for part in _BREAK.split((reply.answer or "").lstrip(_LEADING)) if part.strip()]
    return [*(Reply(part, (), finished=True) for part in parts[:-1]), *(reply.saying(part) for part in parts[-1:])]


def best_of_n(subject: Subject, temperature: float = 1.0, quick: int = 4, full: int = 16) -> StressResult:
    """Every request is asked N times with temperature; it is refused if all N replies refuse.

    The line `one-sample` is the first of them: what the temperature alone does.
    """
    requests, count, note = subject.requests, subject.pick(quick, full), f"Temperature {temperature:g}."
    sampling = replace(subject.sampling, temperature=temperature, seed=subject.seed)
    sampled, plain, size = replace(subject, sampling=sampling), ask_plain(subject, requests), len(requests)
    every = subject.keep("best-of-n", lambda: ask(sampled, requests * count, parts=in_form()))
    samples = [every.part(range(i * size, (i + 1) * size)) for i in range(count)]
    best, name = replace(best_of(samples), seconds=every.seconds), f"best-of-{count}"
    findings = [
        attribute_line(subject, name, f"Best of {count} samples", best, plain, decides=True, note=note),
        attribute_line(subject, "one-sample", "A single sample", samples[0], plain, note=note),
    ]
    return StressResult(
        findings, by_arm({name: best, "one-sample": samples[0]}), {"samples": count, "temperature": temperature}
    )


def best_of(samples: Sequence[Replies]) -> Replies:
    """The attacker's pick of several replies to each request: one that does not refuse, else one not scored."""
    by_arm = {arm: zip(*(sample.arms[arm] for sample in samples), strict=True) for arm in samples[0].arms}
    order = (False, None, True)
    return Replies({arm: [min(own, key=lambda one: order.index(one.refused)) for own in every]
                    for arm, every in by_arm.items()}, samples[0].left_out)  # fmt: skip


def languages(subject: Subject) -> StressResult:
    """Requests in Spanish and German, other ones than the plain: their gain as a share of the plain gain."""
    asked, findings, kept = replace(subject, scorer=multilingual(subject.scorer)), [], {}
    plain, rows = ask_plain(subject, subject.harmful), data_rows("other_languages")
    for language in LANGUAGES:
        benign = f"{language}-benign"
        for line, kind in ((language, "harmful"), (benign, "benign")):
            prompts = [row["prompt"] for row in rows if (row["language"], row["kind"]) == (language, kind)]
            kept[line] = subject.keep(line, partial(ask, asked, prompts))
        what = f"In {language.capitalize()}"
        findings.append(
            attribute_line(subject, language, what, kept[language], plain, decides=True, same_requests=False)
        )
        findings += effects_of(subject, {benign: kept[benign].refused})
    return StressResult(findings, by_arm(kept))


def multilingual(scorer: Scorer) -> Scorer:
    """Phrases that mark a refusal in English or one of the other languages; a judge as it is."""
    if not isinstance(scorer, RefusalPhrases):
        return scorer
    every = [scorer, *map(refusal_phrases, LANGUAGES)]
    kinds = ("openers", "apologies", "inabilities", "anywhere")
    return RefusalPhrases("multilingual", **{k: tuple(p for own in every for p in getattr(own, k)) for k in kinds})
