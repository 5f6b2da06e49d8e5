"""A browser, and the playground of a tiny random model that it opens."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1] / "tests" / "play")]

from tiny_stage import Files, write_files  # noqa: E402

from steer2edit.cli.play import open_page  # noqa: E402

PATIENCE = 300_000
"""Milliseconds for what a model does: a busy machine is slow."""


def chromium(playwright: Playwright) -> Browser:
    """Chromium of the machine, or the one that `playwright install chromium` has brought."""
    own = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    return playwright.chromium.launch(executable_path=own, args=["--no-sandbox"])


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield (started := chromium(playwright))
        started.close()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tmp_path_factory.mktemp("foreign"), seed=5)


@pytest.fixture(scope="session")
def address(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("where-it-was-started"))
    served = open_page(str(files.base), [files.edit, files.vectors])
    yield served.local_url
    served.close()
    os.chdir(before)


class Tab:
    """One visitor."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.asked, self.broken = page, set[str](), list[str]()
        page.on("request", lambda request: self.asked.add(request.url))
        page.on("pageerror", lambda error: self.broken.append(str(error)))
        page.on("dialog", lambda dialog: (self.broken.append("a dialog opened"), dialog.dismiss()))
        page.goto(address)
        page.wait_for_selector("#map [data-name='L0']", timeout=PATIENCE)

    def say(self, prompt: str) -> dict[str, str]:
        """The finished replies by arm."""
        self.page.fill("#prompt :is(textarea, input)", prompt)
        self.page.click("#send")
        self.page.wait_for_function(
            "p => [...document.querySelectorAll('[data-arm=edit] .s2e-user')].some(e => e.textContent === p)"
            " && document.querySelector('#replies [aria-busy=false]') !== null",
            arg=prompt,
            timeout=PATIENCE,
        )
        return {arm: self.page.inner_text(f"[data-arm={arm}] .s2e-reply") for arm in ("base", "steering", "edit")}

    def open(self, name: str) -> None:
        self.page.click(f"button[role=tab]:has-text('{name}')")

    def code(self, kind: str) -> str:
        """The command or the Python, from its tab."""
        self.open("As code")
        text = self.page.input_value(f"#{kind} textarea")
        self.open("Components")
        return text

    def drift(self) -> str:
        return self.page.inner_text("[data-arm=edit] h3 span")

    def fresh(self) -> None:
        self.page.click("#restart")
        self.page.wait_for_selector("[data-arm=edit]", state="detached", timeout=30_000)

    def slide(self, name: str, value: float) -> None:
        self.page.fill(f"#{name} input[type=number]", str(value))
        self.page.press(f"#{name} input[type=number]", "Tab")

    def switch(self, name: str, on: bool = False) -> None:
        self.page.click(f"#map [data-name='{name}']")
        self.page.wait_for_selector(f"#map [data-name='{name}'][aria-pressed={str(on).lower()}]", timeout=30_000)

    def status(self, words: str) -> str:
        self.page.wait_for_function(
            "w => document.querySelector('#status').textContent.includes(w)", arg=words, timeout=30_000
        )
        return self.page.inner_text("#status")


@pytest.fixture
def tab(browser: Browser, address: str) -> Iterator[Tab]:
    yield from _tab(browser, address)


@pytest.fixture
def other_tab(browser: Browser, address: str) -> Iterator[Tab]:
    yield from _tab(browser, address)


@pytest.fixture
def phone(browser: Browser, address: str) -> Iterator[Tab]:
    yield from _tab(browser, address, viewport={"width": 375, "height": 720}, has_touch=True)


def _tab(browser: Browser, address: str, **options: Any) -> Iterator[Tab]:
    context = browser.new_context(**options)
    made = Tab(context.new_page(), address)
    yield made
    assert not made.broken
    context.close()
