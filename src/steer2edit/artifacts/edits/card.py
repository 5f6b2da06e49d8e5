"""The model card of an adapter directory: how to load it, what was edited, what was measured."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from pydantic import ValidationError

from steer2edit.artifacts.card_text import CARD_FILE, base_on_the_hub, base_to_load, cell, portable, quoted
from steer2edit.artifacts.left_out import LeftOut
from steer2edit.artifacts.manifest import EditManifest, EvaluationRecord
from steer2edit.core import Block, Site, WeightEdit
from steer2edit.core.expert_edits import ExpertEdit, expert_edits
from steer2edit.errors import InvalidValueError
from steer2edit.estimates import NOT_SCORED, NUMBER, Estimate
from steer2edit.models import LanguageModel
from steer2edit.models.smollm2 import is_embedded

_TOP_COMPONENTS = 10
_BLOCK_NAMES: dict[Block, tuple[str, str]] = {
    "attn": ("attention", "heads"),
    "ssm": ("state-space mixer", "heads"),
    "mlp": ("MLP", "neurons"),
}
_MOST_LEFT_OUT = 16

_TEMPLATE = """\
---
library_name: peft
{% if hub_id %}base_model: {{ hub_id | json }}
{% endif %}pipeline_tag: text-generation
tags:
- steer2edit
- lora
- activation-steering
- model-editing
---

# A weight edit of {{ base_name | cell }}

{% if evaluation and evaluation.beyond_budget -%}
**{{ evaluation.beyond_budget | cell }}**

{% endif -%}
This adapter is a weight edit computed in closed form from activation-steering vectors with
[Steer2Edit](https://arxiv.org/abs/2602.09870); nothing was trained. Every edited projection changes by one exactly
rank-1 matrix, `W + u aᵀ`, stored as a LoRA of rank 1 with scaling 1 (`lora_B` = u, `lora_A` = aᵀ).

## Load it

With PEFT alone:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({{ base | json }}{{ revision_argument }})
model = PeftModel.from_pretrained(base, "path/to/this/directory")
```

`model.merge_and_unload()` gives the edited checkpoint; `with model.disable_adapter():` gives the base again.

## What was edited

{% for block in blocks -%}
- {{ block.name }}: {{ block.edited }} of {{ block.components }} {{ block.unit }} in {{ block.sites }} layers
  ({{ block.promoted }} promoted, λ > 0; {{ block.suppressed }} suppressed, λ < 0)
{% endfor %}
{%- if mixtures %}
Mixtures of experts, by layer:

| layer | experts edited | neurons edited | experts left out, with the tokens each was given |
| ---: | ---: | ---: | --- |
{% for row in mixtures -%}
| {{ row.layer }} | {{ row.edited }} of {{ row.experts }} | {{ row.neurons }} | {{ row.left_out }} |
{% endfor %}
{%- endif %}
{%- for sentence in left_out %}
{{ sentence | cell }}
{% endfor %}
{%- if settings %}
| setting | value |
| --- | --- |
{% for name, value in settings -%}
| {{ name | cell }} | {{ value | cell }} |
{% endfor %}
{%- endif %}
{%- if top %}
The components with the largest |λ|:

| component | λ | g |
| --- | ---: | ---: |
{% for component, magnitude, importance in top -%}
| {{ component }} | {{ "%+.3f" | format(magnitude) }} | {{ "%+.3f" | format(importance) }} |
{% endfor %}
{%- endif %}
`steer2edit.safetensors` has λ (magnitude) and g (importance) of every component.

{% if evaluation -%}
## Evaluation

Value with its 95 % interval and the number of items.

| |{% for name in metrics %} {{ name | cell }} |{% endfor %}
| --- |{% for name in metrics %} ---: |{% endfor %}
{% for condition in evaluation.conditions -%}
| {{ condition.label | cell }} |{% for name in metrics %} {{ condition.metrics.get(name) | estimate }} |{% endfor %}
{% endfor %}
{% for name, meaning in evaluation.metrics.items() if name in metrics -%}
- {{ name }}: {{ meaning }}
{% endfor %}
{% endif -%}
## Where it comes from

- base model: {{ base_name | cell }}{% if revision %}, revision `{{ revision }}`{% endif %}
- its fingerprint: `{{ fingerprint }}`
{% if embedded -%}
- those weights are the embedded copy of {{ hub_id | cell }}, dequantised from a 4-bit file (Q4_1): not bit for bit the
  Hub's, on which the edit was not measured
{% endif -%}
{% if vectors_sha256 -%}
- steering vectors: SHA-256 `{{ vectors_sha256 }}`
{% endif -%}
- made: {{ created }}
- with: {% for name, version in versions.items() %}{{ name }} {{ version }}{{ ", " if not loop.last }}{% endfor %}

`steer2edit.json` has all settings. The edit fits these weights only: on another model, or on an already edited one,
it does something else.
"""


def write_card(model: LanguageModel, edit: WeightEdit, manifest: EditManifest, directory: Path) -> None:
    """Write `README.md` into a directory.

    Raises:
        InvalidValueError: the evaluation has another form than `EvaluationRecord`.
        ArtifactError: the edit's metadata has what was left out in another form than `LeftOut`.
    """
    evaluation, left_out = _evaluation(manifest.evaluation), LeftOut.of(edit.metadata)
    made_on = edit.metadata["model"]
    vectors = edit.metadata.get("vectors")
    text = _template().render(
        hub_id=base_on_the_hub(model),
        base=base_to_load(model),
        base_name=portable(made_on["name"]),
        revision_argument=f", revision={quoted(model.revision)}" if model.revision else "",
        revision=made_on.get("revision"),
        fingerprint=made_on["fingerprint"],
        embedded=is_embedded(model.name),
        vectors_sha256=vectors.get("sha256") if isinstance(vectors, dict) else None,
        blocks=_blocks(edit),
        mixtures=_mixtures(edit, left_out),
        left_out=left_out.sentences,
        settings=_settings(edit.metadata),
        top=edit.top_components(_TOP_COMPONENTS),
        evaluation=evaluation,
        metrics=_metric_names(evaluation),
        created=manifest.created.isoformat(),
        versions=manifest.versions,
    )
    (directory / CARD_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")


@cache
def _template() -> Template:
    # Markdown, not HTML: autoescape would spoil it. Text goes through `cell` or `json` where it could break the page.
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters.update(cell=cell, json=quoted, estimate=_estimate)
    return environment.from_string(_TEMPLATE)


def _estimate(estimate: Estimate | None) -> str:
    return NOT_SCORED if estimate is None else NUMBER.text(estimate, n=True)


def _evaluation(raw: Mapping[str, Any] | None) -> EvaluationRecord | None:
    if raw is None:
        return None
    try:
        return EvaluationRecord.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidValueError(
            f"the evaluation does not fit: {where}: {first['msg']}. Give `conditions`, a list of objects with `label` "
            "and `metrics` (by name: value, low, high, n, unscored); see docs/formats.md."
        ) from error


def _metric_names(evaluation: EvaluationRecord | None) -> list[str]:
    conditions = evaluation.conditions if evaluation else []
    return list(dict.fromkeys(name for condition in conditions for name in condition.metrics))


def _blocks(edit: WeightEdit) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for block, (name, unit) in _BLOCK_NAMES.items():
        magnitudes = [e.magnitude for site, e in edit.sites.items() if site.block == block]
        promoted = sum(int((lam > 0).sum()) for lam in magnitudes)
        suppressed = sum(int((lam < 0).sum()) for lam in magnitudes)
        if magnitudes:
            rows.append(
                {
                    "name": name,
                    "unit": unit,
                    "sites": len(magnitudes),
                    "components": sum(lam.numel() for lam in magnitudes),
                    "edited": promoted + suppressed,
                    "promoted": promoted,
                    "suppressed": suppressed,
                }
            )
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
