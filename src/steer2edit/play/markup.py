"""The HTML of the page that is ours: replies with shaded tokens, switches of components, tables.

Every text of a model, a visitor or a file is made visible and escaped as the templates write it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from steer2edit.api.showing import LESS_BASE, condition_rows, difference_rows, table
from steer2edit.core import Component, Site
from steer2edit.estimates import Condition, Notation
from steer2edit.evaluation import compare
from steer2edit.play.replies import MOST, Answer
from steer2edit.play.stage import Session
from steer2edit.report import themes
from steer2edit.tables import shown_reply, visible

_NATS, _SIZE = Notation(".2f", signed=True), Notation(".3f", signed=True)
_environment = Environment(
    loader=PackageLoader("steer2edit.play"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True, finalize=lambda value: visible(value) if type(value) is str else value,
)  # fmt: skip
_environment.globals |= {
    "table": lambda *found: Markup(table(*found)),  # escaped there
    "kl": Notation(".3g"), "size": _SIZE, "positive": themes.POSITIVE, "negative": themes.NEGATIVE,
    "shown_reply": shown_reply, "edge": "1px solid var(--border-color-primary)",
}  # fmt: skip
STYLE = _environment.get_template("page.css.jinja").render()


def _part(name: str) -> Callable[..., str]:
    return lambda *given: str(getattr(_environment.get_template("parts.html.jinja").module, name)(*given))


alert, note, wide_table = map(_part, ("alert", "note", "wide_table"))
"""What went wrong; what is to be known; a table, which scrolls by itself where the page is narrow."""


def conditions(found: Sequence[Condition]) -> str:
    """Arms side by side, and what is less the base's on the same prompts."""
    tables = [condition_rows(found), *([(*difference_rows(compare(found)), LESS_BASE)] if len(found) > 1 else [])]
    return "".join(map(wide_table, tables)) + note("In brackets 95 % intervals. Refusals are told by phrases.")


def replies(answers: Sequence[Answer], session: Session, prompt: str, *, busy: bool) -> str:
    """The arms side by side: what was said before, and the reply with its tokens shaded by their KL."""
    return _part("replies")(answers, [session.asked(answer.arm, prompt) for answer in answers], busy)


def _switch(
    session: Session, name: str, text: str, site: Site | None = None, value: float = 0.0, share: float = 0.0
) -> dict[str, Any]:
    """A button that switches a part; the sign of a value gives its colour, and a share how much of it."""
    within = {name} if site is None else {name, str(site), f"L{site.layer}"}
    return {"name": name, "on": not session.off & within, "text": text, "value": value, "share": share}


def component_map(session: Session) -> str:
    """Edited layers downwards, heads across, and the neurons of a layer in one cell; each is a switch."""
    if session.edit is None:
        return note("No edit is chosen.")
    sites = session.edits[session.edit].sites
    sizes = {site: own.magnitude.abs() for site, own in sites.items()}
    most = max((float(size.sum()) for site, size in sizes.items() if site.block == "mlp"), default=0.0)
    largest = max((float(size.max()) for site, size in sizes.items() if site.block != "mlp"), default=0.0)
    rows: dict[int, dict[Any, list[dict[str, Any]]]] = {}
    for site, own in sites.items():
        row = rows.setdefault(site.layer, {"layer": [_switch(session, f"L{site.layer}", f"L{site.layer}")]})
        if site.block == "mlp":
            if count := int(own.magnitude.count_nonzero()):
                share = float(sizes[site].sum()) / most
                row["neurons"] = [_switch(session, str(site), f"{count:,}", site, float(own.magnitude.sum()), share)]
            continue
        for head in own.magnitude.nonzero().flatten().tolist():
            name, value = str(Component(site, head)), float(own.magnitude[head])
            row.setdefault(head, []).append(_switch(session, name, "", site, value, abs(value) / largest))
    heads = range(max((len(size) for site, size in sizes.items() if site.block != "mlp"), default=0))
    said = "λ of heads; of a layer's neurons their number, Σ|λ| as shade. Red raises, blue lowers. Click to switch."
    columns = ("layer", *heads, "neurons")
    return _part("switches")(columns, [[row.get(column, ()) for column in columns] for row in rows.values()], said)


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
        [[_switch(session, str(component), str(component), component.site)], [_SIZE.number(size)], [added]]
        for component, size, added in top
    ]
    rows += [[[_switch(session, name, name)], ["off"], []] for name in sorted(session.off)]
    return _part("switches")(("component", "λ", "added"), rows, said)
