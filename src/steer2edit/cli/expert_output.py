"""What the commands print about mixtures of experts, and about what is left out."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steer2edit.core import SteeringVectors, WeightEdit
    from steer2edit.models import LanguageModel


def experts_json(edit: "WeightEdit") -> list[dict[str, Any]]:
    """Every expert that an edit touches, the largest Σ|λ| first; empty for a dense model."""
    from steer2edit.core.expert_edits import top_experts

    return [
        {
            "expert": str(expert),
            "neurons": expert.neurons,
            "up": expert.strengthened,
            "down": expert.weakened,
            "sum_of_magnitudes": expert.mass,
            "raised": expert.raised,
            "lowered": expert.lowered,
        }
        for expert in top_experts(edit)
    ]


def print_experts(experts: list[dict[str, Any]], top: int) -> None:
    """The table of the experts that carry an edit; nothing for a dense model."""
    from steer2edit.cli.console import print_table

    if not experts:
        return
    rows = [
        [
            e["expert"],
            f"{e['sum_of_magnitudes']:.3f}",
            f"{e['raised']:+.3f}",
            f"{e['lowered']:+.3f}",
            f"{e['up']}",
            f"{e['down']}",
            f"{e['neurons']}",
        ]
        for e in experts[:top]
    ]
    title = "Experts by Σ|λ|" + (f" (the first {top} of {len(experts)})" if len(experts) > top else "")
    print_table(["expert", "Σ|λ|", "Σ λ > 0", "Σ λ < 0", "neurons +", "neurons −", "of"], rows, title)


def print_left_out(metadata: Mapping[str, Any]) -> None:
    """A line on experts and a line on modules that an edit, or vectors, leave out; nothing where there are none."""
    from steer2edit.artifacts.left_out import LeftOut
    from steer2edit.cli.console import say

    for sentence in LeftOut.of(metadata).sentences:
        say(sentence)


def tokens_by_expert(model: "LanguageModel", vectors: "SteeringVectors") -> dict[str, int]:
    """How many tokens each expert was given over both classes, by its name, `L3.E5`; empty for a dense model."""
    tokens: dict[str, int] = {}
    for site, means in vectors.sites.items():
        sizes = model.sites[site].sizes
        if sizes is not None and means.routing is not None:
            seen = map(int, means.routing.seen.tolist())
            tokens |= {f"L{site.layer}.{name}": n for name, n in zip(sizes.names, seen, strict=True)}
    return tokens


def print_expert_tokens(tokens: Mapping[str, int]) -> None:
    """One line on all mixtures: how many experts, and whether enough tokens reached them."""
    from steer2edit.artifacts.left_out import counted
    from steer2edit.cli.console import say
    from steer2edit.editing.convert import MIN_TOKENS

    if not tokens:
        return
    fewest = min(tokens, key=lambda name: tokens[name])
    too_few = sum(n < MIN_TOKENS for n in tokens.values())
    layers = len({name.partition(".")[0] for name in tokens})
    verdict = (
        f"{too_few} were given fewer than {MIN_TOKENS}, and convert leaves those out"
        if too_few
        else "all can be edited"
    )
    say(f"Experts: {len(tokens)} in {counted(layers, 'layer')}; fewest tokens: {tokens[fewest]} ({fewest}); {verdict}.")
