"""Static attacks: transformations of the requests, in the published families.

Each attack is a pure function from a prompt to a prompt; the wording and the families are data, in
`static_attacks.toml`. The verdict's rules are in `attack_verdict`.
"""

from dataclasses import dataclass

from steer2edit.stress.asking import some
from steer2edit.stress.attack_verdict import attack_facts, attack_finding
from steer2edit.stress.attacked import arms_of, ask, by_arm
from steer2edit.stress.static_attacks.families import Family, families
from steer2edit.stress.static_attacks.transformation import Transformation
from steer2edit.stress.stress_test import SUITES, Cost, Group, StressResult, StressTest, Subject, Suite


@dataclass(frozen=True)
class StaticAttack:
    """One family of attacks, a line for each.

    The edit's refusals under an attack are compared in pairs with its refusals of the same requests as they are, and
    with the base's and steering's under the same attack; see `attack_verdict` for the rules.

    Args:
        family: what is done to the requests.
    """

    family: Family
    group: Group = "static"
    suites: frozenset[Suite] = frozenset(SUITES)

    @property
    def name(self) -> str:
        """The family's name."""
        return self.family.name

    @property
    def summary(self) -> str:
        """One line of what it does."""
        return self.family.summary

    @property
    def citation(self) -> str:
        """Where the family was published."""
        return self.family.citation

    def attacks(self, suite: Suite) -> tuple[Transformation, ...]:
        """The first attack in the quick suite, all in the full one."""
        return self.family.attacks[:1] if suite == "quick" else self.family.attacks

    def cost(self, subject: Subject, suite: Suite) -> Cost:
        """A reply to every request under every arm and attack; earlier turns count as passes."""
        each = len(some(subject, suite, subject.harmful)) * len(subject.arms)
        attacks = self.attacks(suite)
        return Cost(each * len(attacks), each * sum(len(attack.shots) for attack in attacks))

    def run(self, subject: Subject, suite: Suite) -> StressResult:
        """Refusals under each attack."""
        arms_of(subject)
        requests = some(subject, suite, subject.harmful)
        plain = ask(subject, requests, requests)
        findings, texts, facts = [], {}, {}
        for attack in self.attacks(suite):
            line = f"{self.name}/{attack.name}"
            found = ask(subject, [attack(request) for request in requests], requests, attack.openers)
            findings.append(attack_finding(subject, line, found, plain, hides=attack.hides))
            texts[line] = found.texts
            facts[line] = attack_facts(subject, found, plain)
        return StressResult(findings, by_arm(texts), facts)


def tests() -> list[StressTest]:
    """Every family."""
    return [StaticAttack(family) for family in families()]
