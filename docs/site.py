"""What the site has besides the files of docs/: the README as its start, and the two references, generated."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.testing import CliRunner

import steer2edit
from steer2edit.cli import app

ROOT = Path(__file__).parents[1]
REPOSITORY_LINK = re.compile(r"\]\((?!https?:|#)([^)]+)\)")
ON_SITE = re.compile(r"docs/([\w-]+\.md(?:#[\w-]+)?)")
FOREIGN = '<script src="https://unpkg.com/iframe-worker/shim"></script>'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, text in {
        "index.md": start(),
        "reference/python.md": python(),
        "reference/command-line.md": commands(),
    }.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links out of docs/ become the names of the files: they are in the repository, not on the site."""
    return REPOSITORY_LINK.sub(lambda link: "]" if link[1].startswith("../") else link[0], markdown)


def on_post_page(output: str, **_: object) -> str:
    """The search of a page that is opened as a file is our own script, not one from another host."""
    assert FOREIGN in output, "mkdocs-material brings its search to files in another way now"
    return output.replace(FOREIGN, f"<script>{(ROOT / 'docs' / 'search.js').read_text(encoding='utf-8')}</script>")


def on_post_template(output_content: str, template_name: str, **_: object) -> str:
    """As `on_post_page`, of the page for what is not found."""
    return on_post_page(output_content) if template_name == "404.html" else output_content


def start() -> str:
    """The README, whose links lead into docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    def target(link: re.Match[str]) -> str:
        inside = ON_SITE.fullmatch(link[1])
        return f"]({inside[1]})" if inside else f"](../{link[1]})"

    return REPOSITORY_LINK.sub(target, text.replace('src="docs/', 'src="'))


def python() -> str:
    """What is public, by its docstrings."""
    return "# Python\n\n" + "\n\n".join(f"::: steer2edit.api.{name}" for name in public()) + "\n"


def public() -> list[str]:
    """Names of the Python face, in the order of the page."""
    return [name for name in steer2edit.__all__ if name != "Steer2EditError"]


def commands() -> str:
    """Every command, as `--help` shows it."""
    names = [command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands]
    shown = {
        name: CliRunner().invoke(app, [name, "--help"], prog_name="steer2edit", env={"COLUMNS": "100"}).output
        for name in names
    }
    return "# Command line\n\n" + "\n".join(f"## {name}\n\n```text\n{text}\n```\n" for name, text in shown.items())
