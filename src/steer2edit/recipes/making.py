"""Vectors and edits as the settings ask for them: what the command line, Python and whole runs share."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from steer2edit.core import SteeringVectors, WeightEdit
from steer2edit.editing import convert, recommended
from steer2edit.editing.convert import MIN_TOKENS
from steer2edit.engines import TransformersEngine
from steer2edit.evaluation import at_drift
from steer2edit.method import PAPER_RULES, Hyperparameters, Rules
from steer2edit.models import LanguageModel, Sampling
from steer2edit.recipes.preview import with_preview_rows
from steer2edit.settings import Accepting, ConvertOptions, ExtractOptions
from steer2edit.steering import ContrastSet, benign_means, extract, load_contrast, measure_effects, measure_inputs
from steer2edit.steering.source import Source

RECIPE = "recipe"
"""Key of the metadata of vectors: the settings that are not the usual ones, from which `refit` extracts again."""
EFFECT_KL = 0.03
"""Nats per token that an edit made of effects spends: its own scale has no meaning."""


def make_contrast(model: LanguageModel, source: Source | ContrastSet, options: ExtractOptions) -> ContrastSet:
    """The contrast set that vectors are made from; one that is there already as it is."""
    if isinstance(source, ContrastSet):
        return source
    sampling = Sampling(options.max_new_tokens, options.temperature, seed=options.seed)
    return load_contrast(
        source, model, labeller=options.labeller, limit=options.limit, sampling=sampling, seed=options.seed
    )  # fmt: skip


def make_vectors(
    model: LanguageModel, options: ExtractOptions, source: Source | ContrastSet | None = None
) -> SteeringVectors:
    """The vectors that the options ask for, with effects if those are asked for.

    Args:
        model: the base model.
        options: what the user decided.
        source: what they are made from, in place of what the options name.
    """
    contrast = make_contrast(model, options.source if source is None else source, options)
    found = extract(
        model, contrast, block_outputs=options.block_outputs, direction=options.direction, span=options.span
    )
    vectors = with_preview_rows(found, contrast)
    if source is None or isinstance(source, str | Path):
        made = options if source is None else replace(options, contrast=str(source))
        vectors = replace(vectors, metadata={**vectors.metadata, RECIPE: _recipe(made)})
    if options.effects or options.decided_by or options.silent_on:
        vectors = measure_effects(
            model, vectors, contrast, decided_by=options.decided_by, silent_on=options.silent_on, seed=options.seed
        )
    return vectors


def _recipe(options: ExtractOptions) -> dict[str, Any]:
    named = {
        one.name: getattr(options, one.name) for one in fields(options) if getattr(options, one.name) != one.default
    }
    return {name: str(value) if isinstance(value, Path) else value for name, value in named.items()}


def make_edit(
    model: LanguageModel, vectors: SteeringVectors, options: ConvertOptions, accepting: Accepting = Accepting()
) -> WeightEdit:
    """The edit that the options ask for: the recommended one of measured effects where vectors have these and no budget
    is given, else by the paper's rule; scaled to a drift if one is given, and 0.03 for edits of effects.

    Raises:
        InvalidValueError: a value is out of range, or nothing is edited.
        MismatchError: the vectors are for another model, lack sites, or lack the means or effects that are needed.
        NoiseError: the diagnosis calls the vectors noise.
    """
    rules, hyperparameters = rules_of(options, vectors)
    if options.contrast is not None and not vectors.has_input_means:
        contrast = load_contrast(
            options.contrast, model, labeller=options.labeller, limit=options.limit, seed=options.seed
        )
        vectors = measure_inputs(model, vectors, contrast)
    benign = benign_means(model, options.spare) if options.spare else None
    least = MIN_TOKENS if options.min_expert_tokens is None else options.min_expert_tokens
    edit = convert(model, vectors, hyperparameters, rules, benign=benign, min_tokens=least, **vars(accepting))
    kl = EFFECT_KL if options.kl is None and rules.importance == "effect" else options.kl
    return edit if kl is None else at_drift(TransformersEngine(model), edit, kl)


def rules_of(options: ConvertOptions, vectors: SteeringVectors) -> tuple[Rules, Hyperparameters]:
    """What is asked for; the recommended rules for effects where nothing else is said and the vectors have any."""
    rho = options.rho_attn, options.rho_mlp
    rules = Rules(options.input_direction, options.importance, options.magnitude)  # type: ignore[arg-type]
    if rho == (None, None) and rules == PAPER_RULES and (found := recommended(vectors)):
        rules = found[0]
    by_effect = rules.importance == "effect"
    if by_effect and rho == (None, None):
        rho = (1.0, 1.0)
    default = 0.0 if by_effect else 0.5
    alpha = default if options.alpha is None else options.alpha
    return rules, Hyperparameters(*rho, alpha, options.max_shift, options.gain if options.spare else None)
