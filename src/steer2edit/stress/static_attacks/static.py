"""Static attacks: requests written in another way, by the published families or from files of ready prompts.

Each attack is a pure function from a prompt to a prompt; the wording and the families are data, in
`static_attacks.toml`. The edit's refusals under an attack are compared in pairs with its refusals of the same requests
as they are, and with the base's and steering's under the same attack, by the rules in `verdicts`.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

from steer2edit.models import Prompt
from steer2edit.steering import find_behaviour
from steer2edit.stress.attack_lines import Attack, attack_result, plain_finding
from steer2edit.stress.findings import StressResult
from steer2edit.stress.replies import Replies, ask, in_form
from steer2edit.stress.static_attacks.attack_formats import AttackFile, read_attacks
from steer2edit.stress.static_attacks.transformation import REQUEST, Transformation
from steer2edit.stress.subject import StressTest, Subject


@dataclass(frozen=True)
class Family:
    """Attacks of one kind.

    Args:
        name: lower case with dashes.
        summary: one line of what they do.
        citation: where the family was published.
        attacks: the first is the quick suite's.
    """

    name: str
    summary: str
    citation: str
    attacks: tuple[Transformation, ...]


@cache
def families() -> tuple[Family, ...]:
    """All families, in the order of `static_attacks.toml`."""
    data = resources.files("steer2edit.stress.static_attacks").joinpath("static_attacks.toml")
    return tuple(
        Family(name, table["summary"], table["citation"], tuple(_transformation(row) for row in table["attacks"]))
        for name, table in tomllib.loads(data.read_text(encoding="utf-8")).items()
    )


@cache
def harmless_shots() -> tuple[tuple[str, str], ...]:
    """Harmless requests with helpful answers, from the training split: never among the prompts that are asked."""
    return tuple(
        (str(example.prompt), example.response)
        for example in find_behaviour("safety-benign").examples()
        if example.label == "negative" and example.split == "train" and example.response is not None
    )


def family_tests() -> list[StressTest]:
    """A test for every family: its first attack in the quick suite, all in the full one."""
    return [
        StressTest(
            family.name,
            "static",
            family.summary,
            family.citation,
            partial(transformed, family=family),
            pooled=tuple(f"{family.name}/{attack.name}" for attack in family.attacks if not attack.hides),
        )
        for family in families()
    ]


def transformed(subject: Subject, family: Family) -> StressResult:
    """Refusals under each attack of a family."""
    requests = subject.some(subject.harmful)
    plain = ask_plain(subject, requests)
    return attack_result(
        subject,
        (
            Attack(f"{family.name}/{attack.name}", _ask(subject, attack, requests), plain, attack.hides)
            for attack in subject.pick(family.attacks[:1], family.attacks)
        ),
    )


def ask_plain(subject: Subject, requests: Sequence[Prompt]) -> Replies:
    """Replies to the requests as they are, which attacks are compared with: scored as those to attacks are."""
    return ask(subject, requests, parts=in_form())


def file_test(path: Path | str) -> tuple[StressTest, list[str]]:
    """(the test of a file of attacks, the requests that the file names); the formats are those of `read_attacks`.

    The test has a line for the file's ready prompts, or one for each of its suffixes, which go behind the subject's own
    requests. Its name ends with the digest of what the file holds: a changed file is another test of a run.

    Raises:
        DataError: there is no such file, it is of no known format, or an entry is not as the format has it.
        ArtifactError: it begins as a JSON object, but is none.
    """
    stem = re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-") or "prompts"
    held = read_attacks(path)
    name = f"attack-file-{stem}-{sha256(repr((held.prompts, held.suffixes)).encode()).hexdigest()[:8]}"
    what = f"{len(held.prompts)} prompts" if held.prompts else f"{len(held.suffixes)} suffixes"
    run = partial(from_prompts if held.prompts else from_suffixes, name=name, held=held)
    requests = [prompt.request for prompt in held.prompts if prompt.request is not None]
    return StressTest(name, "static", f"{held.format}: {what} of a file", held.citation, run), requests


def from_suffixes(subject: Subject, name: str, held: AttackFile) -> StressResult:
    """Refusals of the subject's own requests, plain and behind each suffix: the first in the quick suite."""
    requests = subject.some(subject.harmful)
    plain = ask_plain(subject, requests)
    suffixes = subject.pick(held.suffixes[:1], held.suffixes)
    attacks = (
        Attack(f"{name}/suffix-{i}", _ask(subject, behind(suffix), requests), plain, note=held.note)
        for i, suffix in enumerate(suffixes, start=1)
    )
    line = f"{name}/plain"
    return attack_result(subject, attacks, before=[plain_finding(subject, plain, line)], texts={line: plain})


def from_prompts(subject: Subject, name: str, held: AttackFile) -> StressResult:
    """Refusals of ready prompts, and of their requests as they are where all of those are known."""
    prompts = subject.some(held.prompts)
    texts, requests = [prompt.text for prompt in prompts], [prompt.request for prompt in prompts]
    known = [request for request in requests if request is not None]
    line = f"{name}/prompts"
    if len(known) < len(prompts):
        replies = ask(subject, texts, [None] * len(texts), parts=in_form())
        return attack_result(subject, [Attack(line, replies, None, note=held.note)])
    plain, replies = ask_plain(subject, known), ask(subject, texts, known, parts=in_form())
    before = f"{name}/plain"
    attack = Attack(line, replies, plain, note=held.note)
    return attack_result(subject, [attack], before=[plain_finding(subject, plain, before)], texts={before: plain})


def behind(suffix: str) -> Transformation:
    """The request, a space, and the suffix: how GCG's are put together."""
    return Transformation("suffix", template=f"{REQUEST} {suffix}")


def _ask(subject: Subject, attack: Transformation, requests: Sequence[Prompt]) -> Replies:
    return ask(subject, [attack(request) for request in requests], requests, parts=in_form(attack.openers))


def _transformation(row: Mapping[str, Any]) -> Transformation:
    given = {**row, "template": row.get("template", REQUEST).strip("\n")}
    given["shots"] = harmless_shots()[: row.get("shots", 0)]
    given["openers"] = tuple(row.get("openers", ()))
    return Transformation(**given)
