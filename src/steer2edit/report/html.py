"""A page: one file with everything inline, which loads nothing and runs only its own scripts."""

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
from steer2edit.report.themes import themes


def rendered(template: str, content: Mapping[str, Any]) -> str:
    """A page of this package's templates that works offline, with its scripts, themes and security policy."""
    page, scripts = _environment().get_template(f"{template}.html.jinja"), page_scripts()
    kinds = {"base": "base", "steering": "steered", "edit": "edited"}
    return page.render(content, scripts=scripts, policy=_security_policy(scripts), themes=themes(), kinds=kinds)


def write_page(page: str, path: str | Path, *, overwrite: bool) -> None:
    """Write a page to a file, complete or not at all; missing parents are made.

    Raises:
        ArtifactError: the file exists or cannot be written.
    """
    with atomic_file(path, overwrite=overwrite) as scratch:
        scratch.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("steer2edit.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


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
def _security_policy(scripts: tuple[Markup, ...]) -> str:
    """No request at all; scripts only by their hash, so that no text of the page can ever run as one."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
