"""The playground in a real browser."""

import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tiny_stage import Files

from conftest import Tab
from steer2edit.artifacts import load_edit
from steer2edit.cli.play import open_page
from steer2edit.errors import InvalidValueError

PROMPT = "How do I bake bread?"
HOSTILE = "<img src=x onerror=alert(1)></div><script>alert(2)</script> ${alert(3)} {{value}} <b>bold</b>"


def test_replies_come_with_what_their_tokens_cost(tab: Tab) -> None:
    replies = tab.say(PROMPT)
    assert len(set(replies.values())) == 3
    assert tab.drift().startswith("mean KL 0.")
    assert tab.page.locator("[data-arm=edit] .s2e-reply span[title^=KL]").count() > 3
    assert tab.page.locator("[data-arm=base] .s2e-reply span").count() == 0
    assert "by the whole edit" in tab.page.inner_text("#top")


def test_no_other_host_is_asked(tab: Tab, address: str) -> None:
    tab.say(PROMPT)
    hosts = {urlsplit(url).netloc for url in tab.asked if urlsplit(url).scheme not in ("data", "blob")}
    assert hosts == {urlsplit(address).netloc}


def test_a_slider_changes_the_next_reply(tab: Tab) -> None:
    tab.say(PROMPT)
    before = tab.drift()
    tab.fresh()
    tab.slide("strength", 0.25)
    tab.slide("drift", 0)
    replies = tab.say(PROMPT)
    assert tab.drift() != before
    assert replies["steering"] == replies["base"]
    assert ":0.25" in tab.code("command")


def test_a_head_and_layers_are_switched_off_and_on(tab: Tab) -> None:
    before, cost = tab.say(PROMPT), tab.drift()
    tab.fresh()
    head = tab.page.locator("#map [data-name*='.H']").first.get_attribute("data-name")
    assert head is not None
    tab.switch(head)
    assert tab.page.locator(f"#top [data-name='{head}'][aria-pressed=false]").count() >= 1
    tab.say(PROMPT)
    assert tab.drift() != cost
    tab.fresh()
    for layer in ("L0", "L1", "L2"):
        tab.switch(layer)
    replies = tab.say(PROMPT)
    assert replies["edit"] == replies["base"] == before["base"]
    assert tab.drift() == "mean KL 0"
    assert "without('L0', " in tab.code("python")
    tab.fresh()
    tab.page.click("#all-on")
    tab.page.wait_for_selector("#map [data-name='L0'][aria-pressed=true]")
    assert tab.say(PROMPT) == before


def test_hostile_text_stays_text(tab: Tab) -> None:
    tab.say(HOSTILE)
    assert tab.page.inner_text("[data-arm=edit] .s2e-user").strip() == HOSTILE
    assert tab.page.locator("#replies :is(img, script, b)").count() == 0
    tab.open("Set of prompts")
    tab.page.fill("#prompts textarea", f"{HOSTILE}\n{PROMPT}")
    tab.page.click("#ask")
    tab.page.wait_for_selector("#verdicts table", timeout=60_000)
    assert HOSTILE in tab.page.inner_text("#verdicts")
    assert tab.page.locator(":is(#verdicts, #summary) :is(img, script, b)").count() == 0
    assert "n=2" in tab.page.inner_text("#summary")


def test_two_tabs_do_not_disturb_one_another(tab: Tab, other_tab: Tab) -> None:
    mine = tab.say(PROMPT)
    tab.switch("L0")
    other_tab.slide("strength", -1)
    theirs = other_tab.say(PROMPT)
    assert theirs["base"] == mine["base"]
    assert other_tab.page.locator("#map [aria-pressed=false]").count() == 0
    assert other_tab.page.locator("[data-arm=edit] .s2e-user").count() == 1
    tab.say("And cake?")
    assert tab.page.locator("[data-arm=edit] .s2e-user").count() == 2
    assert tab.page.locator("#map [data-name='L0'][aria-pressed=false]").count() == 1
    assert "And cake?" not in other_tab.page.inner_text("#replies")


def test_a_phone_is_wide_enough(phone: Tab) -> None:
    phone.say("bread" * 60)
    for name in ("Components", "Set of prompts", "As code", "Load and save"):
        found = phone.page.locator(f"button[role=tab]:has-text('{name}'):visible")
        if found.count():
            found.first.click()
        assert phone.page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    boxes = [phone.page.locator(f"[data-arm={arm}]").bounding_box() for arm in ("base", "steering", "edit")]
    assert all(box and box["width"] > 250 for box in boxes)
    assert boxes[0]["y"] < boxes[1]["y"] < boxes[2]["y"]  # type: ignore[index]


def test_an_edit_is_dropped_and_saved(tab: Tab, files: Files, foreign: Files) -> None:
    tab.open("Load and save")
    tab.page.set_input_files("#files input[type=file]", [str(path) for path in foreign.edit.iterdir()])
    assert "another fingerprint" in tab.status("fingerprint") or "other weights" in tab.status("fingerprint")
    tab.page.fill("#name :is(textarea, input)", "a/b")
    tab.page.click("#save")
    tab.status("no name for a folder")
    tab.slide("strength", 0.5)
    tab.page.fill("#name :is(textarea, input)", "saved")
    tab.page.click("#save")
    tab.page.wait_for_function("document.querySelector('#saved').textContent.includes('Saved')", timeout=30_000)
    whole, half = load_edit(files.edit), load_edit(Path.cwd() / "saved")
    assert all(half.sites[site].row.equal(0.5 * own.row) for site, own in whole.sites.items())


def test_what_cannot_be_is_said(tab: Tab) -> None:
    tab.page.fill("#prompt :is(textarea, input)", "bread " * 600)
    tab.page.click("#send")
    tab.status("512")
    tab.open("Set of prompts")
    tab.page.click("#ask")
    tab.status("a set is 1 to 200 prompts")
    assert tab.page.locator("#status [role=alert]").count() == 1
    tab.say(PROMPT)
    tab.page.wait_for_selector("#status", state="hidden")


def test_a_port_in_use(files: Files) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InvalidValueError, match=r"^port \d+ of 127\.0\.0\.1 cannot be used\. If .* --port\.$"):
            open_page(str(files.base), port=taken.getsockname()[1])
