"""Model cards: a template for each kind of artifact, filled in with what it says of itself."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Template

from steer2edit.artifacts.edits.lora import base_reference
from steer2edit.artifacts.left_out import LeftOut
from steer2edit.artifacts.manifest import EditManifest, EvaluationRecord
from steer2edit.core import WeightEdit
from steer2edit.core.edit import expert_edits, shown_blocks
from steer2edit.errors import InvalidValueError
from steer2edit.estimates import NOT_SCORED, NUMBER
from steer2edit.models import LanguageModel
from steer2edit.models.model_path import HUB_ID, embedded_file
from steer2edit.tables import visible

CARD_FILE = "README.md"
_TEMPLATES = Path(__file__).with_name("card_templates")
_TAGS = ["steer2edit", "lora", "activation-steering", "model-editing"]
_MARKUP = re.compile(r"[\\`*|]|(?<=\])[(:]")  # not the brackets, which intervals have
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TOP_COMPONENTS = 10


def rendered(template: str, **values: Any) -> str:
    """A text from its template: a line with nothing but a statement is no line of it."""
    text = (_TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    return str(Template(text, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).render(values))


def write_card(
    template: str, directory: Path, *, library: str = "peft", base_model: str | None = None, **values: Any
) -> None:
    """Write an artifact's `README.md`, with the `values` that its template names, for the `library` that loads it."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(base_model=base_model, library_name=library, pipeline_tag="text-generation", tags=_TAGS)
    card = ModelCard.from_template(data, str(_TEMPLATES / f"{template}.md.jinja"), cell=cell, **values)
    (directory / CARD_FILE).write_text(f"{card}\n", encoding="utf-8", errors="backslashreplace")


def write_edit_card(model: LanguageModel, edit: WeightEdit, manifest: EditManifest, directory: Path) -> None:
    """Write an edit's card; an InvalidValueError where the evaluation has another form than `EvaluationRecord`."""
    evaluation, metadata = None, edit.metadata
    if manifest.evaluation is not None:
        form = "Give `conditions`, objects with `label` and `metrics` (by name: value, low, high, n, unscored)"
        remedy = f"{form}; see docs/formats.md."
        evaluation = EvaluationRecord.read(
            manifest.evaluation, "the evaluation does not fit", remedy, InvalidValueError
        )
    conditions = evaluation.conditions if evaluation else ()
    write_card(
        "edit",
        directory,
        base_model=base_on_the_hub(model),
        manifest=manifest,
        base=base_to_load(model),
        base_name=portable(metadata["model"]["name"]),
        embedded=embedded_file(model.name) is not None,
        blocks=shown_blocks(edit),
        experts=expert_edits(edit),
        left_out=LeftOut.of(metadata),
        metadata=metadata,
        top=edit.top_components(_TOP_COMPONENTS),
        evaluation=evaluation,
        metrics=list(dict.fromkeys(name for one in conditions for name in one.metrics)),
        estimate=lambda found: NOT_SCORED if found is None else NUMBER.text(found, n=True),
    )


def cell(value: object) -> str:
    """A text from anywhere on one line, of which Markdown makes no markup, no link and no end of a table's cell."""
    return _MARKUP.sub(r"\\\g<0>", visible(" ".join(str(value).split()))).replace("<", "&lt;")


def base_on_the_hub(model: LanguageModel) -> str | None:
    """The base's Hub id; a local path would not be a valid `base_model` there."""
    reference = HUB_ID if model.name.lower() == "smollm2" else base_reference(model)
    return reference if _HUB_ID.fullmatch(reference) else None


def base_to_load(model: LanguageModel) -> str:
    """The arguments a card's example loads the base by: its Hub id, or where its folder or its GGUF file would be."""
    reference, known, quoted = base_reference(model), base_on_the_hub(model), partial(json.dumps, ensure_ascii=False)
    if model.gguf_sha256 and known is None:
        return f'"path/to", gguf_file={quoted(portable(model.name))}'
    where = known or (f"path/to/{portable(reference)}" if Path(reference).is_dir() else reference)
    return quoted(where) + (f", revision={quoted(model.revision)}" if model.revision else "")


def portable(name: str) -> str:
    """A model's name as it can be passed on, on one line: of a path on this machine, its last part alone."""
    path = Path(name).expanduser()
    return " ".join((path.resolve().name if path.is_absolute() or path.exists() else name).split())
