"""The model card of a combined edit."""

from pathlib import Path

from steer2edit.artifacts.card_text import CARD_FILE, CARD_TAGS, base_on_the_hub, base_to_load, cell, portable, quoted
from steer2edit.artifacts.edits.combined_manifest import CombinedManifest
from steer2edit.models import LanguageModel


def write_combined_card(model: LanguageModel, manifest: CombinedManifest, directory: Path) -> None:
    """Write `README.md` into a directory."""
    base = base_on_the_hub(model)
    front = ["library_name: peft", *([f"base_model: {quoted(base)}"] if base else [])]
    front += ["pipeline_tag: text-generation", "tags:", *(f"- {tag}" for tag in CARD_TAGS)]
    rows = [f"| {m.name} | {m.weight:g} | `members/{m.name}` |" for m in manifest.members]
    name = cell(portable(manifest.base.name))
    versions = ", ".join(f"{package} {version}" for package, version in manifest.versions.items())
    text = f"""\
---
{chr(10).join(front)}
---

# {len(manifest.members)} weight edits of {name}, in one adapter

Each edit was computed in closed form from activation-steering vectors with
[Steer2Edit](https://arxiv.org/abs/2602.09870); nothing was trained. Their weighted sum is a LoRA of rank
{manifest.rank} with scaling 1.

| edit | weight | as it was made |
| --- | ---: | --- |
{chr(10).join(rows)}

Interference, ‖Σ ΔW‖² / Σ ‖ΔW‖² − 1 over all sites: {manifest.interference["interference"]:+.3f} (0: the edits do not
touch; negative: they cancel in part). `steer2edit.json` has it site by site.

## Load it

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({quoted(base_to_load(model))})
model = PeftModel.from_pretrained(base, "path/to/this/directory")
```

## Where it comes from

- base model: {name}
- its fingerprint: `{manifest.base.fingerprint}`
- made: {manifest.created.isoformat()}
- with: {versions}
"""
    (directory / CARD_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")
