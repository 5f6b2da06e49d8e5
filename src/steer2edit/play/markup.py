"""The HTML of the page that is ours: replies with shaded tokens, switches of components, tables.

Every text of a model, a visitor or a file goes through `escaped`, here and nowhere else; what is no text is a number.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

from steer2edit.api.showing import escaped, table
from steer2edit.core import Site
from steer2edit.estimates import Notation
from steer2edit.play.replies import MOST, Answer, Piece, Table
from steer2edit.play.session import Session
from steer2edit.report import themes

_KL, _NATS, _SIZE = Notation(".3g"), Notation(".2f", signed=True), Notation(".3f", signed=True)
_EDGE = "1px solid var(--border-color-primary)"
STYLE = f"""
.s2e-replies {{ display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }}
.s2e-arm {{ border: {_EDGE}; border-radius: 8px; padding: 10px 12px; min-width: 0; }}
.s2e-arm h3 {{ margin: 0 0 6px; font-size: 1rem; display: flex; justify-content: space-between; gap: 8px; }}
.s2e-arm h3 span, .s2e-note, .s2e-user {{ font-weight: 400; opacity: .75; font-size: .85rem; overflow-wrap: anywhere; }}
.s2e-text {{ white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.6; }}
.s2e-user {{ border-left: {_EDGE}; padding-left: 8px; margin-bottom: 6px; }}
.s2e-text span {{ background: color-mix(in srgb, {themes.POSITIVE} var(--kl), transparent); border-radius: 2px; }}
.s2e-wide {{ overflow-x: auto; max-width: 100%; margin-bottom: 6px; }}
.s2e-switches :is(td, th) {{ padding: 1px 4px 1px 1px; font-size: .75rem; font-weight: 400; border: 0; }}
.s2e-switches button {{ font: inherit; min-width: 24px; height: 24px; border: {_EDGE}; border-radius: 4px;
  padding: 0 4px; background: color-mix(in srgb, var(--hue) var(--size), transparent); cursor: pointer; }}
.s2e-switches button[aria-pressed=false] {{ opacity: .4; text-decoration: line-through; border-style: dashed; }}
.s2e-alert {{ border-left: 4px solid {themes.POSITIVE}; padding: 6px 10px; overflow-wrap: anywhere; }}
"""


def alert(text: str) -> str:
    """What went wrong."""
    return f'<div class="s2e-alert" role="alert">{escaped(text)}</div>'


def note(text: str) -> str:
    """What is to be known."""
    return f'<div class="s2e-note">{escaped(text)}</div>'


def wide_table(found: Table) -> str:
    """A table, which scrolls by itself where the page is narrow."""
    return f'<div class="s2e-wide">{table(*found)}</div>'


def replies(answers: Sequence[Answer], session: Session, prompt: str, *, busy: bool) -> str:
    """The arms side by side: what was said before, and the reply with its tokens shaded by their KL."""

    def arm(answer: Answer) -> str:
        said = [(message["role"], message["content"]) for message in session.asked(answer.arm, prompt)]
        before = "".join(f'<div class="s2e-text s2e-{role}">{escaped(text)}</div>' for role, text in said)
        drift = "" if answer.drift is None else f"mean KL {_KL.number(answer.drift)}"
        return (
            f'<section class="s2e-arm" data-arm="{answer.arm.kind}"><h3>{answer.arm.label}<span>{drift}</span></h3>'
            f'{before}<div class="s2e-text s2e-reply">{"".join(map(_piece, answer.pieces))}</div></section>'
        )

    legend = note("Shade: KL of the token's distribution to the base's in nats, from none at 0 to full at 1 and above.")
    return f'<div class="s2e-replies" aria-busy="{str(busy).lower()}">{"".join(map(arm, answers))}</div>{legend}'


def _piece(piece: Piece) -> str:
    if not piece.drifts:
        return escaped(piece.text)
    drift = max(sum(piece.drifts) / len(piece.drifts), 0.0)
    shade = 100 * min(1.0, sqrt(drift))
    return f'<span style="--kl:{shade:.0f}%" title="KL {_KL.number(drift)}">{escaped(piece.text)}</span>'


def component_map(session: Session) -> str:
    """Edited layers downwards, heads across, and the neurons of a layer in one cell; each is a switch."""
    if session.edit is None:
        return note("No edit is chosen.")
    sites = session.edits[session.edit].sites
    sizes = {site: own.magnitude.abs() for site, own in sites.items()}
    most = max((float(size.sum()) for site, size in sizes.items() if site.block == "mlp"), default=0.0)
    largest = max((float(size.max()) for site, size in sizes.items() if site.block != "mlp"), default=0.0)
    rows: dict[int, dict[Any, str]] = {}
    for site, own in sites.items():
        row = rows.setdefault(site.layer, {"layer": _switch(session, f"L{site.layer}", f"L{site.layer}")})
        if site.block == "mlp":
            if count := int(own.magnitude.count_nonzero()):
                share = float(sizes[site].sum()) / most
                row["neurons"] = _switch(session, str(site), f"{count:,}", site, float(own.magnitude.sum()), share)
            continue
        for head in own.magnitude.nonzero().flatten().tolist():
            name, value = str(site.component(head)), float(own.magnitude[head])
            row[head] = row.get(head, "") + _switch(session, name, "", site, value, abs(value) / largest)
    heads = range(max((len(size) for site, size in sizes.items() if site.block != "mlp"), default=0))
    said = "λ of heads; of a layer's neurons their number, Σ|λ| as shade. Red raises, blue lowers. Click to switch."
    columns = ("layer", *heads, "neurons")
    return _table(columns, [[row.get(column, "") for column in columns] for row in rows.values()]) + note(said)


def component_list(session: Session) -> str:
    """The top components with what they add to the reply, and all that is switched off; each is a switch."""
    if session.edit is None:
        return ""
    if (found := session.added) is None:
        top = [(component, size, "") for component, size, _ in session.edits[session.edit].top_components(MOST)]
        said = "The largest |λ|; once there is a reply, what adds most to its log-probability."
    else:
        top = [(component, size, _NATS.number(added)) for component, size, added in found.top]
        said = (
            f"Added to log p of the edited reply, in nats: {_NATS.number(found.total)} by the whole edit; by each "
            "component, what is lost without it. They act on each other, so these do not add up."
        )
    rows = [
        [_switch(session, str(component), str(component), component.site), _SIZE.number(size), added]
        for component, size, added in top
    ]
    rows += [[_switch(session, name, name), "off", ""] for name in sorted(session.off)]
    return _table(("component", "λ", "added"), rows) + note(said)


def _table(columns: Sequence[object], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML."""
    lines = [[f"<th>{one}</th>" for one in columns], *([f"<td>{cell}</td>" for cell in row] for row in rows)]
    shown = "".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    return f'<div class="s2e-wide s2e-switches"><table>{shown}</table></div>'


def _switch(
    session: Session, name: str, text: str, site: Site | None = None, value: float = 0.0, share: float = 0.0
) -> str:
    """A button that switches a part; the sign of a value gives its colour, and a share how much of it."""
    on = not session.off & {name, *([] if site is None else [str(site), f"L{site.layer}"])}
    style = f"--hue:{themes.POSITIVE if value > 0 else themes.NEGATIVE};--size:{100 * share:.0f}%"
    title = f"{name}: λ {_SIZE.number(value)}" if value else name
    return (
        f'<button type="button" data-name="{name}" aria-pressed="{str(on).lower()}" title="{title}" '
        f'style="{style}">{text}</button>'
    )
