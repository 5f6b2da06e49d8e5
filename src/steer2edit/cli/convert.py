"""`steer2edit convert`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steer2edit.cli.options import Accepting, JsonOption, Loading, ModelArgument, OverwriteOption, VectorsArgument
from steer2edit.settings import ConvertOptions

if TYPE_CHECKING:
    from steer2edit.core import SteeringVectors
    from steer2edit.method import Hyperparameters, Rules

EFFECT_KL = 0.03
"""Nats per token that an edit made of effects spends: its own scale has no meaning."""


def convert(
    model: ModelArgument,
    vectors: VectorsArgument,
    out: Annotated[Path, typer.Option(help="Directory for the edit; must not exist.")],
    options: ConvertOptions,
    loading: Loading,
    accepting: Accepting,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Turn vectors into a rank-1 weight edit of heads and neurons, saved as a PEFT adapter.

    Of vectors with measured effects (extract --effects) an edit of these is made unless a budget rho is given.

    \b
    Example:
    steer2edit convert smollm2 vectors.safetensors --out edit
    steer2edit convert smollm2 vectors.safetensors --rho-attn 0.2 \\
      --rho-mlp 0.9 --alpha 0.5 --max-shift 1 --out edit
    """
    from steer2edit.artifacts import load_vectors, require_free, save_edit
    from steer2edit.cli.inspect import print_edit
    from steer2edit.editing import convert as compute_edit
    from steer2edit.editing.convert import MIN_TOKENS
    from steer2edit.engines import TransformersEngine
    from steer2edit.evaluation import at_drift
    from steer2edit.progress import show_progress
    from steer2edit.steering import benign_means, load_contrast, measure_inputs

    require_free(out, overwrite=overwrite)
    loaded_vectors = load_vectors(vectors)
    rules, hyperparameters = _rules(options, loaded_vectors)
    least = MIN_TOKENS if options.min_expert_tokens is None else options.min_expert_tokens
    kl = EFFECT_KL if options.kl is None and rules.importance == "effect" else options.kl
    with show_progress():
        loaded = loading.load(model, loaded_vectors.metadata)
        if options.contrast is not None and not loaded_vectors.has_input_means:
            measured = load_contrast(
                options.contrast, loaded, labeller=options.labeller, limit=options.limit, seed=options.seed
            )
            loaded_vectors = measure_inputs(loaded, loaded_vectors, measured)
        benign = benign_means(loaded, options.spare) if options.spare else None
        edit = compute_edit(
            loaded, loaded_vectors, hyperparameters, rules, benign=benign, min_tokens=least, **vars(accepting)
        )
        if kl is not None:
            edit = at_drift(TransformersEngine(loaded), edit, kl)
        save_edit(loaded, edit, out, overwrite=overwrite)
    print_edit(edit, out, top=10, as_json=json_output)


def _rules(options: ConvertOptions, vectors: "SteeringVectors") -> "tuple[Rules, Hyperparameters]":
    """What is asked for; the recommended rules for effects where nothing else is said and the vectors have any."""
    from steer2edit.editing import recommended
    from steer2edit.method import PAPER_RULES, Hyperparameters, Rules

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
