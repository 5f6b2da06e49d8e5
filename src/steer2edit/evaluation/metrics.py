"""What the names of metrics mean: `{set}_{kind}`, e.g. `advbench_refused`; some presets go without the set."""

from dataclasses import dataclass
from typing import Literal

Scale = Literal["share", "difference", "amount"]
"""A share in [0, 1], written in percent; a signed difference; or an amount."""


@dataclass(frozen=True)
class MetricName:
    """A metric as people read it.

    Args:
        name: its key in the results.
        brief: a column's title in a terminal.
        short: a few words, for axes and cards.
        description: what it is, with its unit.
        scale: how its numbers are written.
        against_base: whether it compares a model with the base, which has none of its own then.
    """

    name: str
    brief: str
    short: str
    description: str
    scale: Scale
    against_base: bool = False


@dataclass(frozen=True)
class _Kind:
    scale: Scale
    brief: str
    short: str
    description: str
    against_base: bool = False


_KINDS = {
    "refused": _Kind("share", "{set} refused", "{set} requests refused", "{set} requests refused"),
    "preferred": _Kind(
        "share",
        "truth preferred",
        "True answer preferred",
        "questions whose true answer is preferred to the false one",
    ),
    "margin": _Kind(
        "difference",
        "truth margin",
        "Preference margin",
        "preference of the true over the false answer (nats per token)",
    ),
    "mc1": _Kind("share", "{set} MC1", "{set} MC1", "{set}: questions whose best answer beats every false one"),
    "mc2": _Kind("share", "{set} MC2", "{set} MC2", "{set}: share of probability on the true answers"),
    "accuracy": _Kind("share", "{set} accuracy", "{set} accuracy", "{set}: questions answered right"),
    "accuracy_sum": _Kind(
        "share",
        "{set} accuracy (sum)",
        "{set} accuracy (sum)",
        "{set}: questions answered right by log-probability that is not normalised by length",
    ),
    "reply_tokens": _Kind("amount", "reply tokens", "Reply length", "reply length, thought included (tokens)"),
    "finished": _Kind("share", "finished", "Replies that ended", "replies that ended by themselves"),
    "repetition": _Kind("share", "repetition", "Repeated 4-grams", "4-grams of a reply that occurred in it before"),
    "empty": _Kind("share", "empty", "Empty replies", "replies without any text"),
    "unfinished": _Kind("share", "unfinished", "Replies cut off", "replies that did not end by themselves"),
    "nll_increase": _Kind(
        "difference",
        "NLL increase",
        "NLL increase",
        "NLL increase on the base's own benign answers (nats per token)",
        against_base=True,
    ),
    "kl": _Kind(
        "amount",
        "KL to base",
        "KL to the base",
        "KL(base ‖ model) on the base's own benign answers (nats per token)",
        against_base=True,
    ),
}
_LONGEST_FIRST = sorted(_KINDS, key=len, reverse=True)
_WITHOUT_SET = {"truth_preferred": "preferred", "truth_margin": "margin"}  # the names of the truthfulness preset


def metric_name(name: str) -> MetricName:
    """What a key of the results means; one that is not known is called by its key."""
    kind, owner = _split(name)
    if kind is None:
        return MetricName(name, owner, owner, owner, "amount")
    brief, short = kind.brief, kind.short
    description = kind.description
    if owner and "{set}" not in brief:
        brief, short, description = f"{{set}} {brief}", f"{short}, {{set}}", f"{{set}}: {description}"
    brief, short, description = (text.format(set=owner) for text in (brief, short, description))
    return MetricName(name, brief, short[:1].upper() + short[1:], description, kind.scale, kind.against_base)


def _split(name: str) -> tuple[_Kind | None, str]:
    """(kind, set in words)."""
    plain = _WITHOUT_SET.get(name, name)
    if plain in _KINDS:
        return _KINDS[plain], ""
    for suffix in _LONGEST_FIRST:
        if name.endswith(f"_{suffix}"):
            return _KINDS[suffix], name.removesuffix(f"_{suffix}").replace("_", " ")
    return None, name.replace("_", " ")


_PRESET_METRICS = (
    "harmful_refused",
    "benign_refused",
    "borderline_refused",
    "truth_preferred",
    "truth_margin",
    "reply_tokens",
    "finished",
    "nll_increase",
    "kl",
)
METRICS = {name: metric_name(name).description for name in _PRESET_METRICS}
"""Metrics of the three behaviours and what they mean; `metric_name` tells it of any."""
