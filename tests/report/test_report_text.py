import html

import pytest

from steer2edit.report.html import plot_text, visible_json
from steer2edit.tables import visible


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "⟨U+001B⟩[31mred⟨U+001B⟩[0m"),
        ("a\x00b\x7fc\x9bd", "a⟨U+0000⟩b⟨U+007F⟩c⟨U+009B⟩d"),
        ("\u202egnp.exe", "⟨U+202E⟩gnp.exe"),
        ("\u061cb\u200fc\U000e0041d", "⟨U+061C⟩b⟨U+200F⟩c⟨U+E0041⟩d"),
        ("\ud800", "⟨U+D800⟩"),
        ("one\r\ntwo\n\tthree", "one\ntwo\n\tthree"),
        ("a\rb", "a⟨U+000D⟩b"),
        ("👩\u200d🔬 می\u200cخواهم", "👩\u200d🔬 می\u200cخواهم"),
    ],
)
def test_control_characters_become_visible_and_text_stays(raw: str, shown: str) -> None:
    assert visible(raw) == shown
    shown.encode("utf-8")


def test_every_string_of_a_json_value_is_made_visible() -> None:
    value = {"a\x1b": ["\x07", {"b": "\x00"}, 1, None, 0.5, True]}
    assert visible_json(value) == {"a⟨U+001B⟩": ["⟨U+0007⟩", {"b": "⟨U+0000⟩"}, 1, None, 0.5, True]}


def test_plot_text_leaves_no_markup_for_plotly() -> None:
    hostile = "<a href='javascript:alert(1)'>x</a> &lt;b&gt; \x1b"
    shown = plot_text(hostile)
    assert not set("<>'\"") & set(shown)
    assert html.unescape(shown) == visible(hostile)
