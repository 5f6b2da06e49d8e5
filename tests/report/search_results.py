"""The results of a search as JSON, small enough to work out by hand what the report must show of it."""

from typing import Any

Json = dict[str, Any]
COMPLETE = "complete"


def estimate(value: float) -> Json:
    return {"value": value, "low": value - 0.0625, "high": value + 0.125, "n": 20, "unscored": 0}


def measured(kind: str, label: str, parameters: Json, attribute: Json, kl: float, **more: float) -> Json:
    metrics = {**attribute, "kl": estimate(kl), **{name: estimate(value) for name, value in more.items()}}
    return {"kind": kind, "label": label, "parameters": parameters, "metrics": metrics, "replies": {}, "values": {}}


def hyperparameters(rho_attn: float | None, alpha: float) -> Json:
    return {
        "rho_attn": rho_attn, "rho_mlp": None if rho_attn else 0.5, "alpha": alpha,
        "alpha_mlp": None,
    }  # fmt: skip


def trial(
    key: str, rho_attn: float | None, alpha: float, attribute: Json, kl: float, stopped: str | None = None
) -> Json:
    share = 0.25 if stopped else 1.0
    place = {"strength": 1.0, "trial": key, "share": share, "stopped": stopped}
    parameters = {**hyperparameters(rho_attn, alpha), **place}
    return measured("edit", f"trial {key}", parameters, attribute, kl, sanity_kl=kl / 2)


def search_results(
    name: str = "harmful_refused", behaviour: str = "safety", stopped: int = 3, step: float = 0.125
) -> Json:
    """Base, three strengths of steering, four trials on all items, and some that were stopped.

    The attribute of level n is `n · step`; the front is trials a (level 2) and b (level 4, recommended), c is dominated
    by b and d is beyond the budget.
    """

    def level(n: float) -> Json:
        return {name: estimate(n * step)}

    steering = [(0.1, 1, 0.0625), (0.2, 2, 0.125), (0.3, 4, 0.375)]
    validation = [
        measured("base", "base", {}, level(0), 0.0),
        *(measured("steering", f"steering {s}", {"strength": s}, level(n), kl) for s, n, kl in steering),
        trial("a", 0.2, 0.5, level(2), 0.0625),
        trial("b", 0.4, 0.25, level(4), 0.125),
        trial("c", None, 0.75, level(3), 0.1875),
        trial("d", 0.1, 0.5, level(5), 0.5),
        *(trial(f"s{i}", 0.3, 0.5, level(1), 0.25, "less promising than half of it") for i in range(stopped)),
    ]
    filtered = {**trial("f", 0.05, 0.1, {}, 3.0, "degenerate: KL 3.00"), "metrics": {"sanity_kl": estimate(3.0)}}
    recommended = hyperparameters(0.4, 0.25)
    held_out = [
        measured("base", "base", {}, level(0), 0.0, benign_refused=0.0),
        *(
            measured("steering", f"steering {s}", {"strength": s}, level(n), kl, benign_refused=0.25)
            for s, n, kl in steering
        ),
        measured(
            "edit", "edit a", {**hyperparameters(0.2, 0.5), "strength": 1.0}, level(2), 0.0625, benign_refused=0.0
        ),
        measured("edit", "edit b", {**recommended, "strength": 1.0}, level(3), 0.1875, benign_refused=0.125),
    ]
    replies = {
        "base": ["one", "two"], "steering 0.1": ["first weak", "second weak"],
        "steering 0.2": ["I", "II"], "steering 0.3": ["i", "ii"],
        "edit b": ["uno", "two"],
    }  # fmt: skip
    for condition in held_out:
        if condition["label"] in replies:
            condition["replies"] = {"asked": replies[condition["label"]]}
    return {
        "schema_version": 1,
        "title": "Search for a test",
        "behaviour": behaviour,
        "attribute": name,
        "direction": -1 if name == "reply_tokens" else 1,
        "model": {"name": "tiny"},
        "settings": {"trials": 9},
        "validation": {"conditions": [*validation, filtered]},
        "held_out": {"conditions": held_out},
        "prompts": {"asked": ["first?", "second?"]},
        "chosen": {"hyperparameters": recommended, "rule": "the most", "limits": {"kl": 0.25}},
        "front": ["a", "b"],
        "trials": {"tried": 6 + stopped, COMPLETE: 4, "less promising than half of it": stopped, "degenerate": 1,
                   "edits next to nothing": 1},
        "comparison": {"at_equal_cost": estimate(step), "relative": estimate(0.5)},
        "summary": ["told in the terminal"],
    }  # fmt: skip
