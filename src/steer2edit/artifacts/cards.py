"""Model cards: a template for each kind of artifact, filled in with what it says of itself."""

import json
import re
from pathlib import Path
from typing import Any

from steer2edit.artifacts.edits.peft_files import base_reference
from steer2edit.models import LanguageModel
from steer2edit.models.smollm2 import HUB_ID

CARD_FILE = "README.md"
_TEMPLATES = Path(__file__).with_name("card_templates")
_TAGS = ["steer2edit", "lora", "activation-steering", "model-editing"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def write_card(
    template: str, directory: Path, *, library: str = "peft", base_model: str | None = None, **values: Any
) -> None:
    """Write `README.md` into a directory.

    Args:
        template: its name.
        directory: of the artifact.
        library: that loads it.
        base_model: id of the base on the Hub.
        values: what the template names.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(base_model=base_model, library_name=library, pipeline_tag="text-generation", tags=_TAGS)
    card = ModelCard.from_template(data, str(_TEMPLATES / f"{template}.md.jinja"), cell=cell, quoted=_quoted, **values)
    (directory / CARD_FILE).write_text(f"{card}\n", encoding="utf-8", errors="backslashreplace")


def _quoted(text: str) -> str:
    """A literal that Python reads."""
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
    """The arguments a card's example loads the base by: its Hub id, or where its folder or its GGUF file would be."""
    reference, known = base_reference(model), base_on_the_hub(model)
    if model.gguf_sha256 and known is None:
        return f'"path/to", gguf_file={_quoted(portable(model.name))}'
    where = known or (f"path/to/{portable(reference)}" if Path(reference).is_dir() else reference)
    return _quoted(where) + (f", revision={_quoted(model.revision)}" if model.revision else "")


def portable(name: str) -> str:
    """A model's name as it can be passed on: of a path on this machine, its last part alone."""
    path = Path(name).expanduser()
    return path.resolve().name if path.is_absolute() or path.exists() else name
