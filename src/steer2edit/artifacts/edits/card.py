"""The model card of an adapter directory: how to load it, what was edited, what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from steer2edit.artifacts.cards import base_on_the_hub, base_to_load, portable, write_card
from steer2edit.artifacts.left_out import LeftOut
from steer2edit.artifacts.manifest import EditManifest, EvaluationRecord, first_fault
from steer2edit.core import Block, Site, WeightEdit
from steer2edit.core.expert_edits import ExpertEdit, expert_edits
from steer2edit.errors import InvalidValueError
from steer2edit.estimates import NOT_SCORED, NUMBER, Estimate
from steer2edit.models import LanguageModel
from steer2edit.models.smollm2 import embedded_file

_TOP_COMPONENTS = 10
_BLOCK_NAMES: dict[Block, tuple[str, str]] = {
    "attn": ("attention", "heads"),
    "ssm": ("state-space mixer", "heads"),
    "mlp": ("MLP", "neurons"),
}
_MOST_LEFT_OUT = 16


def write_edit_card(model: LanguageModel, edit: WeightEdit, manifest: EditManifest, directory: Path) -> None:
    """Write `README.md` into a directory.

    Raises:
        InvalidValueError: the evaluation has another form than `EvaluationRecord`.
        ArtifactError: the edit's metadata has what was left out in another form than `LeftOut`.
    """
    evaluation, left_out = _evaluation(manifest.evaluation), LeftOut.of(edit.metadata)
    vectors = edit.metadata.get("vectors")
    write_card(
        "edit",
        directory,
        base_model=base_on_the_hub(model),
        manifest=manifest,
        base=base_to_load(model),
        base_name=portable(edit.metadata["model"]["name"]),
        made_on=edit.metadata["model"],
        embedded=embedded_file(model.name) is not None,
        vectors_sha256=vectors.get("sha256") if isinstance(vectors, dict) else None,
        blocks=_blocks(edit),
        mixtures=_mixtures(edit, left_out),
        left_out=left_out,
        settings=_settings(edit.metadata),
        top=edit.top_components(_TOP_COMPONENTS),
        evaluation=evaluation,
        metrics=_metric_names(evaluation),
        estimate=_estimate,
    )


def _estimate(estimate: Estimate | None) -> str:
    return NOT_SCORED if estimate is None else NUMBER.text(estimate, n=True)


def _evaluation(raw: Mapping[str, Any] | None) -> EvaluationRecord | None:
    if raw is None:
        return None
    try:
        return EvaluationRecord.model_validate(raw)
    except ValidationError as error:
        raise InvalidValueError(
            f"the evaluation does not fit: {first_fault(error)}. Give `conditions`, a list of objects with `label` "
            "and `metrics` (by name: value, low, high, n, unscored); see docs/formats.md."
        ) from error


def _metric_names(evaluation: EvaluationRecord | None) -> list[str]:
    conditions = evaluation.conditions if evaluation else []
    return list(dict.fromkeys(name for condition in conditions for name in condition.metrics))


def _blocks(edit: WeightEdit) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for block, (name, unit) in _BLOCK_NAMES.items():
        magnitudes = [e.magnitude for site, e in edit.sites.items() if site.block == block]
        if not magnitudes:
            continue
        every = torch.cat(magnitudes)
        row = {"name": name, "unit": unit, "sites": len(magnitudes), "components": every.numel()}
        signs = {"promoted": int((every > 0).sum()), "suppressed": int((every < 0).sum())}
        rows.append({**row, **signs, "edited": sum(signs.values())})
    return rows


def _mixtures(edit: WeightEdit, left_out: LeftOut) -> list[dict[str, object]]:
    """A row per mixture of experts: how many of its experts are edited, and which are left out."""
    by_site: dict[Site, list[ExpertEdit]] = {}
    for expert in expert_edits(edit):
        by_site.setdefault(expert.site, []).append(expert)
    return [
        {
            "layer": site.layer,
            "edited": sum(expert.edited > 0 for expert in experts),
            "experts": len(experts),
            "neurons": sum(expert.edited for expert in experts),
            "left_out": left_out.experts_of(site, _MOST_LEFT_OUT) or "none",
        }
        for site, experts in by_site.items()
    ]


def _settings(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("method", metadata["method"])] if "method" in metadata else []
    for group, suffix in (("hyperparameters", ""), ("rules", " rule")):
        values = metadata.get(group)
        if isinstance(values, dict):
            rows += [(name + suffix, "off" if value is None else value) for name, value in values.items()]
    return [(name, str(value)) for name, value in rows]
