"""How objects show themselves: a few lines of text, HTML in a notebook, and rows for pandas and terminals."""

import html
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steer2edit.artifacts.left_out import counted as noun_counted
from steer2edit.estimates import Condition, Estimate, column
from steer2edit.evaluation import metric_name
from steer2edit.tables import visible

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_BOX = "font-family: system-ui, sans-serif; font-size: 13px; max-width: 60em; overflow-x: auto"
_CELL = "padding: 2px 12px 2px 0; text-align: {side}; white-space: pre-line"
_HEIGHT = 320
_UNITS = {"attn": "attention head", "ssm": "mixer head", "mlp": "neuron"}
_there: set[str] = set()


def lines(*texts: str) -> str:
    """The lines that say something, without controls: names of models and files are in them."""
    return visible("\n".join(filter(None, texts)))


def counted(components: Mapping[str, int]) -> str:
    """How many components of each block."""
    return " and ".join(noun_counted(count, _UNITS[block]) for block, count in components.items())


def page(text: str, *parts: str) -> str:
    """HTML of a text, whose first line is the title, and of parts that are HTML already."""
    title, *others = map(escaped, text.split("\n"))
    said = "".join(f"<div>{line}</div>" for line in others)
    return f'<div style="{_BOX}"><div><b>{title}</b></div>{said}{"".join(parts)}</div>'


def escaped(text: object) -> str:
    """A text of whatever origin as HTML."""
    return html.escape(visible(str(text)))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> str:
    """HTML of a table; the first column is text, the others are figures."""

    def row(tag: str, cells: Sequence[str]) -> str:
        sides = ("left", *["right"] * (len(cells) - 1))
        styles = [_CELL.format(side=side) for side in sides]
        shown = [f'<{tag} style="{own}">{escaped(one)}</{tag}>' for own, one in zip(styles, cells, strict=True)]
        return f"<tr>{''.join(shown)}</tr>"

    caption = f'<caption style="text-align: left">{escaped(title)}</caption>' if title else ""
    return f"<table>{caption}{row('th', columns)}{''.join(row('td', cells) for cells in rows)}</table>"


def plot(figure: "Figure") -> str:
    """HTML of a figure that needs no network: the first one of a process brings plotly's script along."""
    from plotly.graph_objects import layout

    from steer2edit.report.themes import themes

    figure.update_layout(
        template=layout.Template(themes()["light"]), paper_bgcolor="white", height=_HEIGHT,
        margin={"l": 60, "r": 20, "t": 30, "b": 40},
    )  # fmt: skip
    alone = "google.colab" in sys.modules  # there every cell is a page of its own
    script: Any = "cdn" if alone else "plotly" not in _there
    _there.add("plotly")
    return str(figure.to_html(full_html=False, include_plotlyjs=script, default_width="100%"))


LESS_BASE = "Less base, on the same items, 95 % intervals"
Rows = tuple[list[str], list[list[str]]]
"""(titles of columns, rows)."""


def condition_rows(conditions: Sequence[Condition]) -> Rows:
    """Every metric under every condition."""
    first = conditions[0]
    metrics = {name: metric_name(name) for name in first.metrics}
    titles = [f"{metric.brief}\nn={first.metrics[name].n}" for name, metric in metrics.items()]

    def cell(condition: Condition, name: str) -> str:
        if metrics[name].against_base and condition.kind == "base":
            return "reference"
        return column(_is_share(name, first.values.get(name, ()))).text(condition.metrics[name])

    return ["", *titles], [[one.label, *(cell(one, name) for name in metrics)] for one in conditions]


def difference_rows(comparisons: Sequence[Mapping[str, Any]]) -> Rows:
    """What `evaluation.compare` found: every condition less the first."""
    names = list(comparisons[0]["differences"])
    rows = []
    for one in comparisons:
        found = {name: Estimate(**one["differences"][name]) for name in names}
        rows.append(
            [one["label"], *(column(_is_share(name), change=True).text(estimate) for name, estimate in found.items())]
        )
    titles = [f"{metric_name(name).brief}\nn={comparisons[0]['differences'][name]['n']}" for name in names]
    return ["", *titles], rows


def _is_share(name: str, values: Sequence[Any] = ()) -> bool:
    """By its name, or because every item is a verdict: the harness has names of its own."""
    verdicts = bool(values) and all(value is None or isinstance(value, bool) for value in values)
    return verdicts or metric_name(name).scale == "share"
