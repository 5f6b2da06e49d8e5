"""The page of an export, for people and the Hub."""

from collections.abc import Sequence
from pathlib import Path

from steer2edit.artifacts.card_text import CARD_FILE, CARD_TAGS, cell, portable
from steer2edit.artifacts.edits.low_rank import Members

_LIBRARY = {"peft": "peft", "vllm": "peft", "gguf-lora": "gguf"}


def write_export_card(format: str, members: Members, usage: Sequence[str], directory: Path) -> None:
    """Write `README.md` into a directory."""
    base = members[0][0].metadata["model"]
    tags = "\n".join(f"- {tag}" for tag in CARD_TAGS)
    commands = "\n".join(usage)
    text = f"""\
---
library_name: {_LIBRARY[format]}
pipeline_tag: text-generation
tags:
{tags}
---

# Adapters of {cell(portable(base["name"]))} ({format})

Weight edits computed in closed form from activation-steering vectors with
[Steer2Edit](https://arxiv.org/abs/2602.09870), one adapter per strength, the strength folded in. They fit the weights
with the fingerprint `{base["fingerprint"]}` only.

```text
{commands}
```

`steer2edit.json` has the strengths, and the SHA-256 of every file.
"""
    (directory / CARD_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")
