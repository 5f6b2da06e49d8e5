"""The report page: one file with everything inline, which loads nothing and runs only its own scripts."""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from steer2edit.artifacts import atomic_file
from steer2edit.core import WeightEdit
from steer2edit.report.content import page_content
from steer2edit.report.run_results import read_results
from steer2edit.report.themes import themes


def render_report(results: Mapping[str, Any], edit: WeightEdit) -> str:
    """The report as one HTML page that works offline.

    Every text of the results is untrusted: it is escaped in HTML, in embedded JSON and in plotly's labels, and the
    page's content security policy allows no request and no script but its own.

    Args:
        results: the JSON of a run (docs/formats.md).
        edit: the weight edit that the run chose.

    Returns:
        The page.

    Raises:
        DataError: the results are malformed, or of another schema version.
    """
    return rendered("report", page_content(read_results(results), edit))


def write_report(results: Mapping[str, Any], edit: WeightEdit, path: str | Path, *, overwrite: bool = False) -> None:
    """Render the report to a file: complete or not at all.

    Args:
        results: the JSON of a run.
        edit: the weight edit that the run chose.
        path: the file. Missing parents are made.
        overwrite: replace an existing file.

    Raises:
        DataError: the results are malformed.
        ArtifactError: the file exists or cannot be written.
    """
    write_page(render_report(results, edit), path, overwrite=overwrite)


def rendered(template: str, content: Mapping[str, Any]) -> str:
    """A page of this package's templates that works offline, with its scripts, themes and security policy."""
    scripts = page_scripts()
    page = _environment().get_template(f"{template}.html.jinja")
    kinds = {"base": "base", "steering": "steered", "edit": "edited"}
    return page.render(
        content, scripts=scripts, policy=content_security_policy(scripts), themes=themes(), kinds=kinds
    )  # fmt: skip


def write_page(page: str, path: str | Path, *, overwrite: bool) -> None:
    """Write a page to a file, complete or not at all; missing parents are made.

    Raises:
        ArtifactError: the file exists or cannot be written.
    """
    with atomic_file(path, overwrite=overwrite) as scratch:
        scratch.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


@cache
def _environment() -> Environment:
    """The templates of this package."""
    return Environment(
        loader=PackageLoader("steer2edit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def page_scripts() -> tuple[Markup, ...]:
    """What the page runs: plotly.js, and our own."""
    return _inline(get_plotlyjs()), _inline(_environment().get_template("report.js.jinja").render())


def _inline(script: str) -> Markup:
    """A script of ours, trusted as it is. The browser hashes it with newlines normalised, so we normalise them too."""
    script = script.replace("\r\n", "\n")
    assert "</script" not in script.lower()
    assert "<!--" not in script
    return Markup(script)


@cache
def content_security_policy(scripts: tuple[Markup, ...]) -> str:
    """No request at all; scripts only by their hash, so that no text of the page can ever run as one."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
