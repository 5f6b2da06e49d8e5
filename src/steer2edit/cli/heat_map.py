"""The heat map of heads on a terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from steer2edit.core import Site


def print_heat_map(magnitudes: Mapping["Site", "Tensor"]) -> None:
    """λ by layer and head: red raises, blue lowers, one cell a head.

    Args:
        magnitudes: λ [n] of every site with heads.
    """
    from rich.text import Text

    from steer2edit.cli.console import out, say

    largest = max((float(lam.abs().max()) for lam in magnitudes.values()), default=0.0)
    if not largest:
        return say("No attention head is edited.")
    say(f"λ by layer (down) and head (across); red +, blue −, full colour = {largest:.3g}", style="bold")
    mixers = any(site.block == "ssm" for site in magnitudes)
    for site in sorted(magnitudes):
        line = Text(f"{site.layer:>4} {site.block + ' ' if mixers else ''}")
        for value in magnitudes[site].tolist():
            share = abs(value) / largest
            fade = round(255 * (1 - share))
            colour = f"rgb(255,{fade},{fade})" if value > 0 else f"rgb({fade},{fade},255)"
            line.append(
                "·  " if value == 0 else ("+  " if value > 0 else "−  "), style=f"black on {colour}" if value else ""
            )
        out().print(line, soft_wrap=True)
    return None
