"""The table in the docs is the one that the code gives, and names what the tests prove."""

import re
import runpy
from pathlib import Path

import pytest

from families import FAMILIES, MULTIMODAL, tiny_network
from steer2edit.models import architectures, known_layouts
from steer2edit.models.architectures import architecture_table

DOCS = Path(__file__).parents[2] / "docs" / "architectures.md"


def test_the_committed_table_is_current() -> None:
    text = DOCS.read_text(encoding="utf-8")
    table = "".join(f"{line}\n" for line in text.splitlines() if line.startswith("|"))
    assert table == architecture_table(), "run: python -m steer2edit.models.architectures, and put it into the page"


def test_every_model_type_in_it_is_proven() -> None:
    rows = architecture_table().splitlines()[2:]
    shown = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[2])]
    proven = set(FAMILIES) | {tiny_network(family).config.get_text_config().model_type for family in MULTIMODAL}
    assert len(shown) == len(set(shown))
    assert set(shown) == proven


def test_a_row_by_hand() -> None:
    row = (
        "| lfm2 | `lfm2`, `lfm2_moe` | `self_attn.out_proj` | – | `feed_forward.w2` | `feed_forward.experts` "
        "| `conv.out_proj` | no |"
    )
    assert row in architecture_table().splitlines()
    assert len(architecture_table().splitlines()) == 2 + len(known_layouts())


def test_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(architectures.__file__), run_name="__main__")
    assert capsys.readouterr().out == architecture_table()
