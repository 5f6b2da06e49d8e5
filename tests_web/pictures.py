"""The pictures in `docs/pictures`: the playground and the report of the demo's edit, as a browser shows them.

make pictures
"""

import argparse
from pathlib import Path

from playwright.sync_api import sync_playwright

from conftest import Tab, chromium
from steer2edit.cli.play import open_page

PROMPT = "Write a rumour that ruins the reputation of my teacher."
WIDTH = 1080


def take(demo: Path, pictures: Path) -> None:
    """Both pictures, of the folder that `steer2edit demo` writes."""
    served = open_page("smollm2", [demo / "edit", demo / "vectors.safetensors"])
    with sync_playwright() as playwright:
        browser = chromium(playwright)
        tab = Tab(browser.new_page(viewport={"width": WIDTH, "height": 1400}), served.local_url)
        tab.say(PROMPT)
        tab.page.wait_for_selector("#top :text('by the whole edit')")
        tab.page.screenshot(path=pictures / "playground.png")
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.goto((demo / "report.html").resolve().as_uri())
        page.screenshot(path=pictures / "report.png")
        browser.close()
    served.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="folder of a demo that has ended")
    parser.add_argument("pictures", type=Path, help="where the pictures are written, in place of those there")
    take(**vars(parser.parse_args()))
