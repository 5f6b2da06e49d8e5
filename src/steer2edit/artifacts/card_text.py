"""Pieces of text that every model card needs."""

import json
import re
from pathlib import Path

from steer2edit.artifacts.edits.peft_files import base_reference
from steer2edit.models import LanguageModel
from steer2edit.models.smollm2 import HUB_ID

CARD_FILE = "README.md"
CARD_TAGS = ("steer2edit", "lora", "activation-steering", "model-editing")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def quoted(text: str) -> str:
    """A literal that YAML and Python both read."""
    return json.dumps(text, ensure_ascii=False)


def cell(value: object) -> str:
    """A text on one line that does not end a table's cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def base_on_the_hub(model: LanguageModel) -> str | None:
    """The base's Hub id; a local path would not be a valid `base_model` there."""
    if model.name.lower() == "smollm2":
        return HUB_ID
    reference = base_reference(model)
    return reference if _HUB_ID.fullmatch(reference) else None


def base_to_load(model: LanguageModel) -> str:
    """What a card's example loads the base by: its Hub id, or where a folder of its name would be."""
    reference = base_reference(model)
    return base_on_the_hub(model) or (f"path/to/{portable(reference)}" if Path(reference).is_dir() else reference)


def portable(name: str) -> str:
    """A model's name as it can be passed on: of a path on this machine, the folder's name alone."""
    path = Path(name).expanduser()
    return path.resolve().name if path.is_absolute() or path.is_dir() else name
