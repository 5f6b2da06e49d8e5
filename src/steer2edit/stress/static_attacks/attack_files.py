"""Static attacks from files of ready prompts and suffixes, as they are published."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from steer2edit.models import Prompt
from steer2edit.stress.asking import some
from steer2edit.stress.attack_verdict import attack_facts, attack_finding, plain_finding
from steer2edit.stress.attacked import ask, by_arm
from steer2edit.stress.static_attacks.attack_formats import AttackFile, read_attacks
from steer2edit.stress.static_attacks.transformation import REQUEST, Transformation
from steer2edit.stress.stress_test import SUITES, Cost, Finding, Group, StressResult, Subject, Suite


@dataclass(frozen=True)
class AttackFileTest:
    """The attacks of one file: a line for its ready prompts, or one for each of its suffixes.

    Where the requests are known, they are asked as they are too, and the verdict's rules are those of every static
    attack, see `attack_verdict`; suffixes go behind the subject's own requests.

    Args:
        name: lower case with dashes.
        attacks: of the file.
    """

    name: str
    attacks: AttackFile
    group: Group = "static"
    suites: frozenset[Suite] = frozenset(SUITES)

    @property
    def summary(self) -> str:
        """What the file holds."""
        held = self.attacks.prompts or self.attacks.suffixes
        return f"{self.attacks.format}: {len(held)} {'prompts' if self.attacks.prompts else 'suffixes'} of a file"

    @property
    def citation(self) -> str:
        """Where the attack was published."""
        return self.attacks.citation

    @property
    def requests(self) -> list[str]:
        """The requests that the file names."""
        return [prompt.request for prompt in self.attacks.prompts if prompt.request is not None]

    def cost(self, subject: Subject, suite: Suite) -> Cost:
        """A reply to every prompt, and to every request as it is, under every arm."""
        if self.attacks.suffixes:
            replies = len(some(subject, suite, subject.harmful)) * (1 + len(self._suffixes(suite)))
        else:
            sets = 1 if self._requests(subject, suite) is None else 2
            replies = sets * len(some(subject, suite, self.attacks.prompts))
        return Cost(replies=replies * len(subject.arms))

    def run(self, subject: Subject, suite: Suite) -> StressResult:
        """Refusals of the file's prompts, or behind its suffixes."""
        if self.attacks.suffixes:
            requests = some(subject, suite, subject.harmful)
            behind_each: dict[str, list[Prompt]] = {
                f"{self.name}/suffix-{number}": [behind(suffix)(request) for request in requests]
                for number, suffix in enumerate(self._suffixes(suite), start=1)
            }
            return self._compared(subject, behind_each, requests)
        prompts = some(subject, suite, self.attacks.prompts)
        ready: dict[str, list[Prompt]] = {f"{self.name}/prompts": [prompt.text for prompt in prompts]}
        return self._compared(subject, ready, self._requests(subject, suite))

    def _compared(
        self, subject: Subject, sets: dict[str, list[Prompt]], requests: Sequence[Prompt] | None
    ) -> StressResult:
        findings: list[Finding] = []
        texts, facts = {}, {}
        plain = None
        if requests is not None:
            plain = ask(subject, requests, requests)
            findings.append(plain_finding(subject, plain, name=f"{self.name}/plain"))
            texts[findings[0].name] = plain.texts
        for line, prompts in sets.items():
            found = ask(subject, prompts, requests or [None] * len(prompts))
            findings.append(attack_finding(subject, line, found, plain, note=self.attacks.note))
            texts[line] = found.texts
            facts[line] = attack_facts(subject, found, plain)
        return StressResult(findings, by_arm(texts), facts)

    def _suffixes(self, suite: Suite) -> tuple[str, ...]:
        return self.attacks.suffixes[:1] if suite == "quick" else self.attacks.suffixes

    def _requests(self, subject: Subject, suite: Suite) -> list[str] | None:
        """The plain requests of the prompts that are asked; `None` unless all are known."""
        prompts = some(subject, suite, self.attacks.prompts)
        known = [prompt.request for prompt in prompts if prompt.request is not None]
        return known if len(known) == len(prompts) else None


def attack_file_test(path: Path | str) -> AttackFileTest:
    """The test of a file of attacks; the formats are those of `read_attacks`.

    Its name ends with the digest of what the file holds: a changed file is another test of a run.

    Raises:
        DataError: there is no such file, it is of no known format, or an entry is not as the format has it.
        ArtifactError: it begins as a JSON object, but is none.
    """
    stem = re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-") or "prompts"
    attacks = read_attacks(path)
    digest = sha256(repr((attacks.prompts, attacks.suffixes)).encode()).hexdigest()
    return AttackFileTest(f"attack-file-{stem}-{digest[:8]}", attacks)


def behind(suffix: str) -> Transformation:
    """The request, a space, and the suffix: how GCG's are put together."""
    return Transformation("suffix", template=f"{REQUEST} {suffix}")
