"""An edit made anew for changed weights, from its own recipe: after a fine-tune, a merge, or a new quantisation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from steer2edit.core import WeightEdit
from steer2edit.editing import convert
from steer2edit.engines import TransformersEngine
from steer2edit.errors import DataError
from steer2edit.estimates import Condition
from steer2edit.evaluation import BASE_ARM, at_drift, behaviour, edit_arm, evaluate
from steer2edit.method import Hyperparameters, Rules
from steer2edit.models import LanguageModel
from steer2edit.recipes.making import RECIPE, make_vectors
from steer2edit.settings import ExtractOptions, RefitOptions
from steer2edit.steering import benign_means, require_no_overlap
from steer2edit.steering.source import IN_MEMORY

NOW = "as it is now"


@dataclass(frozen=True)
class Refitted:
    """An edit for changed weights, and what was left of the behaviour without it.

    Args:
        edit: made of what was measured on the model as it is now.
        conditions: the model as it is now, with the old edit on top, and with the new one, on held-out items.
        prompts: what was asked, by set.
    """

    edit: WeightEdit
    conditions: Sequence[Condition]
    prompts: Mapping[str, Sequence[str]]


def recipe_of(edit: WeightEdit, contrast: str | None = None) -> ExtractOptions:
    """What the vectors of an edit were extracted with.

    Args:
        edit: with the record of its vectors in its metadata.
        contrast: what they are to be made from instead.

    Raises:
        DataError: the edit does not say what its vectors are made from, and no contrast is given.
    """
    vectors = edit.metadata.get("vectors", {})
    known = dict(vectors.get(RECIPE) or {})
    named = known.pop("contrast", None) or vectors.get("contrast", {}).get("name")
    source = contrast or (None if named == IN_MEMORY or known.keys() & {"positive", "negative"} else named)
    if source is None:
        raise DataError(
            "the edit does not name one contrast set that its vectors are made from: they come from memory, from two "
            "files or from another tool. Give one: --contrast BEHAVIOUR|FOLDER|FILE (contrast=...)."
        )
    known = {name: value for name, value in known.items() if name not in ("positive", "negative")}
    if "effects" in vectors:
        known = {"effects": True, "decided_by": vectors["effects"]["decided_by"], **known}
    return ExtractOptions(**{**known, "contrast": source})


def refit(model: LanguageModel, edit: WeightEdit, changed: RefitOptions = RefitOptions()) -> Refitted:
    """Extract and convert again with an edit's own settings, on a model whose weights have changed since.

    Nothing is searched: rules, budgets and drift are those of the edit. A model that was tuned with the edit in its
    weights is measured with what is left of it.

    Args:
        model: the changed model, of the same architecture.
        edit: whose recipe is followed.
        changed: of the recipe; the limit is of extraction and measurement alike.

    Raises:
        DataError: the edit does not say what its vectors are made from.
        MismatchError: the model has other sites or shapes than the edit.
        NoiseError: the diagnosis calls the new vectors noise.
    """
    model.require_fit(edit, allow_mismatch=True)
    options = recipe_of(edit, changed.contrast)
    options = options if changed.limit is None else replace(options, limit=changed.limit)
    part = behaviour(str(options.contrast), "held_out", limit=changed.limit, seed=options.seed)
    vectors = make_vectors(model, options)
    require_no_overlap({"vector": vectors.metadata.get("prompts", ()), "held-out": part.digests})
    facts = edit.metadata
    benign = facts.get("benign")
    made = convert(
        model,
        vectors,
        Hyperparameters(**facts["hyperparameters"]),
        Rules(**facts["rules"]),
        benign=benign_means(model, benign["source"]) if benign else None,
        force=changed.force,
    )
    engine = TransformersEngine(model)
    if drift := facts.get("drift"):
        made = at_drift(engine, made, drift.get("asked", drift["kl"]))
    old = {"model": facts.get("model"), "vectors": facts.get("vectors", {}).get("sha256")}
    made = replace(made, metadata={**made.metadata, "refit_of": old})
    arms = [replace(BASE_ARM, label=NOW), edit_arm(edit, "old edit on top"), edit_arm(made, "refitted edit")]
    return Refitted(made, evaluate(engine, part.tasks, arms), part.prompts)
