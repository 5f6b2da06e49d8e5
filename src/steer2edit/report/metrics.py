"""How each metric is named and its estimates are written. What is not scored is said in words, never as 0."""

from dataclasses import dataclass
from typing import Literal

from steer2edit.evaluation.results import METRICS
from steer2edit.evaluation.statistics import Estimate

TARGET = "harmful_refused"
DAMAGE = ("nll_increase", "kl", "benign_refused")
NOT_SCORED = "not scored"

Scale = Literal["share", "difference", "amount"]
_SCALES: dict[str, Scale] = {
    "harmful_refused": "share",
    "benign_refused": "share",
    "nll_increase": "difference",
    "kl": "amount",
}
_SHORT = {
    "harmful_refused": "Harmful requests refused",
    "benign_refused": "Benign requests refused",
    "nll_increase": "NLL increase",
    "kl": "KL to the base",
}


@dataclass(frozen=True)
class Metric:
    """A metric as people read it.

    Args:
        name: its key in the results.
        short: a few words, for axes and cards.
        description: what it is, with its unit.
        scale: a share in [0, 1] (written in percent), a signed difference, or an amount.
    """

    name: str
    short: str
    description: str
    scale: Scale

    @classmethod
    def named(cls, name: str) -> "Metric":
        """The metric with this key; one that is not known is called by its key."""
        plain = name.replace("_", " ")
        return cls(name, _SHORT.get(name, plain), METRICS.get(name, plain), _SCALES.get(name, "amount"))

    @property
    def unit(self) -> str:
        """` %`, ` nats per token`, or nothing."""
        if self.scale == "share":
            return " %"
        return " nats per token" if "nats per token" in self.description else ""

    def number(self, value: float) -> str:
        """The bare number, without unit: `58.3`, `+0.148`, `0.093`."""
        if self.scale == "share":
            return f"{100 * value:.1f}"
        return f"{value:+.3f}" if self.scale == "difference" else f"{value:.3f}"

    def value(self, estimate: Estimate) -> str:
        """The estimate alone, `58.3 %`, or `not scored`."""
        if estimate.value is None:
            return NOT_SCORED
        return self.number(estimate.value) + (" %" if self.scale == "share" else "")

    def interval(self, estimate: Estimate) -> str:
        """The interval alone, `44.3 to 71.2 %`, or why there is none."""
        if estimate.value is None:
            return "no interval"
        if estimate.low is None or estimate.high is None:
            return "no interval (n = 1)" if estimate.n == 1 else "no interval"
        ends = f"{self.number(estimate.low)} to {self.number(estimate.high)}"
        return ends + (" %" if self.scale == "share" else "")

    def sentence(self, estimate: Estimate) -> str:
        """For running text: `58.3 % (95 % interval 44.3 to 71.2 %, n = 48)`."""
        if estimate.value is None:
            return f"{NOT_SCORED} ({estimate.unscored} without a score)"
        interval = self.interval(estimate)
        prefix = "" if interval.startswith("no interval") else "95 % interval "
        unscored = f", {estimate.unscored} not scored" if estimate.unscored else ""
        unit = "" if self.scale == "share" else self.unit
        return f"{self.value(estimate)}{unit} ({prefix}{interval}, n = {estimate.n}{unscored})"
