"""A page: one file with everything inline, which loads nothing and runs only its own scripts.

Untrusted text is made harmless: what a model wrote may hold markup, terminal escapes, or invisible controls.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from steer2edit.artifacts import atomic_file
from steer2edit.estimates import Condition, Notation
from steer2edit.evaluation import COST, Metric, metric_name
from steer2edit.report.themes import themes
from steer2edit.tables import visible

_NOTATIONS = {
    "percent": Notation(".1f", "\u00a0%", 100.0, typeset=True),
    "percent_change": Notation(".1f", " %", 100.0, signed=True, typeset=True),
    "points": Notation(".1f", " points", 100.0, signed=True, typeset=True),
    "number": Notation(typeset=True),
    "change": Notation(".3f", signed=True, typeset=True),
}
"""How templates write estimates, by name."""


def visible_json(value: Any) -> Any:
    """A JSON value with every string in it, keys included, made visible."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        return [visible_json(entry) for entry in value]
    if isinstance(value, dict):
        return {visible(key): visible_json(entry) for key, entry in value.items()}
    return value


def plot_text(text: str) -> str:
    """The text for a plotly label: escaped, because plotly reads `<b>`, `<a>` and entities as markup."""
    return html.escape(visible(text))


def figure_json(figure: go.Figure) -> dict[str, Any]:
    """Data and layout of a figure as JSON values; the page adds the light or the dark template."""
    content = json.loads(figure.to_json())
    content["layout"].pop("template", None)
    return {"data": content["data"], "layout": content["layout"]}


def rendered(template: str, figures: Mapping[str, go.Figure], content: Mapping[str, Any]) -> str:
    """A page of this package's templates, with figures by their id, scripts, themes and security policy."""
    scripts, policy = _scripts()
    embedded = {name: figure_json(figure) for name, figure in figures.items()}
    page = _environment().get_template(f"{template}.html.jinja")
    return page.render(content, figures=embedded, scripts=scripts, policy=policy, themes=themes())


def write_page(page: str, path: str | Path, *, overwrite: bool) -> None:
    """Write a page to a file, complete or not at all; missing parents are made."""
    with atomic_file(path, overwrite=overwrite) as scratch:
        scratch.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("steer2edit.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.globals |= {"metric_name": metric_name, "metrics_of": metrics_of, "COST": COST, "notations": _NOTATIONS}
    return environment


def metrics_of(conditions: Sequence[Condition]) -> list[Metric]:
    """The metrics that any of the conditions has, but for the one on a few short requests that throws them out."""
    names = dict.fromkeys(name for condition in conditions for name in condition.metrics)
    return [metric_name(name) for name in names if name != "sanity_kl"]


@cache
def _scripts() -> tuple[list[Markup], str]:
    """What the page runs, trusted as it is: plotly.js, and our own; and the page's security policy.

    No request at all; scripts only by their hash, so that no text of the page can ever run as one. The browser hashes
    them with newlines normalised, so we normalise them too.
    """
    sources = (get_plotlyjs(), _environment().get_template("report.js.jinja").render())
    scripts = [Markup(source.replace("\r\n", "\n")) for source in sources]
    assert not any("</script" in script.lower() or "<!--" in script for script in scripts)
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return scripts, (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
