"""`steer2edit convert`."""

from pathlib import Path
from typing import Annotated

import typer

from steer2edit.cli.options import (
    AllowMismatchOption,
    AllowMissingOption,
    ChatTemplateOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    LabellerOption,
    LayoutOption,
    LimitOption,
    ModelArgument,
    OverwriteOption,
    SeedOption,
    TemplateArgOption,
    TrustOption,
    VectorsArgument,
    named_values,
)


def convert(
    model: ModelArgument,
    vectors: VectorsArgument,
    out: Annotated[Path, typer.Option(help="Directory for the edit; must not exist.")],
    rho_attn: Annotated[
        str, typer.Option(help="Budget rho > 0 of attention heads, or off. Larger means weaker.")
    ] = "off",
    rho_mlp: Annotated[str, typer.Option(help="Budget rho > 0 of MLP neurons, or off. Larger means weaker.")] = "off",
    alpha: Annotated[
        float | None,
        typer.Option(
            help="l1 share alpha in [0, 1). Larger means sparser. By default 0.5, and 0 for edits of effects."
        ),
    ] = None,
    max_shift: Annotated[
        float | None,
        typer.Option(
            help="Beyond the paper: no site's edit moves its mean output further than steering at this strength. "
            "Off by default."
        ),
    ] = None,
    spare: Annotated[
        str | None,
        typer.Option(
            help="Beyond the paper: make the edit do nothing, on average, to replies to benign requests: `benign` "
            "(built-in requests) or a file of prompts."
        ),
    ] = None,
    gain: Annotated[float, typer.Option(help="With --spare: multiplies what sparing leaves of the edit.")] = 1.0,
    input_direction: Annotated[
        str,
        typer.Option(
            help="Rule for k: sensitivity (the paper's), mean, svd; or, beyond it, gated (with --importance effect)."
        ),
    ] = "sensitivity",
    importance: Annotated[
        str, typer.Option(help="Rule for g: cosine (the paper's), dot; or, beyond it, effect (extract --effects).")
    ] = "cosine",
    magnitude: Annotated[
        str, typer.Option(help="Rule for lambda: elastic-net (the paper's), top-k, ridge.")
    ] = "elastic-net",
    kl: Annotated[
        float | None,
        typer.Option(
            help="Scale the edit so that it drifts this far from the base on benign requests, KL in nats per token. "
            "By default 0.015 for edits of effects, and not at all otherwise."
        ),
    ] = None,
    min_expert_tokens: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Leave out experts of a mixture that were given fewer tokens in the contrast set; by default 32.",
        ),
    ] = None,
    contrast: Annotated[
        str | None,
        typer.Option(help="Preset or file to measure input means on, for vectors that were made elsewhere."),
    ] = None,
    labeller: LabellerOption = None,
    limit: LimitOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    layout: LayoutOption = None,
    chat_template: ChatTemplateOption = None,
    template_arg: TemplateArgOption = None,
    trust_remote_code: TrustOption = False,
    allow_mismatch: AllowMismatchOption = False,
    allow_missing: AllowMissingOption = False,
    force: ForceOption = False,
    seed: SeedOption = 0,
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
    if gain != 1.0 and spare is None:
        raise typer.BadParameter(f"--gain {gain:g} multiplies what sparing leaves of the edit: give --spare too.")
    from steer2edit.artifacts import load_vectors, require_free, save_edit
    from steer2edit.cli.inspect import print_edit
    from steer2edit.editing import convert as compute_edit
    from steer2edit.editing import recommended
    from steer2edit.editing.convert import MIN_TOKENS
    from steer2edit.engines import TransformersEngine
    from steer2edit.evaluation import at_drift
    from steer2edit.method import PAPER_RULES, Hyperparameters, Rules
    from steer2edit.models import load_model
    from steer2edit.progress import show_progress
    from steer2edit.steering import benign_means, load_contrast, measure_inputs

    rho = parse_rho("--rho-attn", rho_attn), parse_rho("--rho-mlp", rho_mlp)
    rules = Rules(input_direction, importance, magnitude)  # type: ignore[arg-type]
    require_free(out, overwrite=overwrite)
    loaded_vectors = load_vectors(vectors)
    recipe = recommended(loaded_vectors)
    if rho == (None, None) and rules == PAPER_RULES and recipe:
        rules = recipe[0]
    by_effect = rules.importance == "effect"
    if by_effect and rho == (None, None):
        rho = (1.0, 1.0)
    share = (0.0 if by_effect else 0.5) if alpha is None else alpha
    hyperparameters = Hyperparameters(*rho, share, max_shift, gain if spare else None)
    with show_progress():
        loaded = load_model(
            model, dtype=dtype, device=device, layout=layout, chat_template=chat_template,
            trust_remote_code=trust_remote_code,
            template_args=named_values("--template-arg", template_arg),
            like=loaded_vectors.metadata,
        )  # fmt: skip
        if contrast is not None and not loaded_vectors.has_input_means:
            measured = load_contrast(contrast, loaded, labeller=labeller, limit=limit, seed=seed)
            loaded_vectors = measure_inputs(loaded, loaded_vectors, measured)
        benign = benign_means(loaded, spare) if spare else None
        edit = compute_edit(
            loaded, loaded_vectors, hyperparameters, rules, benign=benign,
            min_tokens=MIN_TOKENS if min_expert_tokens is None else min_expert_tokens,
            allow_mismatch=allow_mismatch, allow_missing=allow_missing, force=force,
        )  # fmt: skip
        if (wanted := EFFECT_KL if kl is None and by_effect else kl) is not None:
            edit = at_drift(TransformersEngine(loaded), edit, wanted)
        save_edit(loaded, edit, out, overwrite=overwrite)
    print_edit(edit, out, top=10, as_json=json_output)


EFFECT_KL = 0.015
"""Nats per token that an edit made of effects spends: its own scale has no meaning."""


def parse_rho(option: str, text: str) -> float | None:
    """A number, or `None` for `off`."""
    if text.lower() == "off":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option} must be a number > 0 or off, got {text!r}.") from error
