"""`steer2edit steer`."""

from typing import Annotated

import typer

from steer2edit.cli.options import (
    AllowMismatchOption,
    JsonOption,
    Loading,
    ModelArgument,
    OverwriteOption,
    ResultsOption,
    SplitOption,
    VectorsArgument,
)
from steer2edit.settings import shared
from steer2edit.settings.declared import read_numbers


def steer(
    model: ModelArgument,
    vectors: VectorsArgument,
    loading: Loading,
    strength: Annotated[str, typer.Option(help="Strengths, separated by commas.")] = "0,0.1,0.2,0.3",
    evaluate: shared.Behaviour = None,
    split: SplitOption = "validation",
    out: ResultsOption = None,
    limit: shared.Limit = None,
    max_new_tokens: shared.MaxNewTokens = None,
    allow_mismatch: AllowMismatchOption = False,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Validate vectors by activation steering: how the attribute and the damage grow with strength.

    \b
    Example:
    steer2edit steer smollm2 vectors.safetensors --strength 0,0.1,0.2,0.3 \\
      --evaluate safety
    """
    strengths = read_numbers("--strength", strength)
    from steer2edit.artifacts import load_vectors, require_free
    from steer2edit.cli.comparison import write_results
    from steer2edit.cli.console import print_conditions, print_json, say
    from steer2edit.engines import TransformersEngine
    from steer2edit.evaluation import BASE_ARM, behaviour, behaviour_of, steering_arm
    from steer2edit.evaluation import evaluate as run_evaluation
    from steer2edit.progress import show_progress

    if split not in ("validation", "held_out"):
        raise typer.BadParameter(f"--split must be validation or held_out, got {split!r}.")
    if out is not None:
        require_free(out, overwrite=overwrite)
    loaded_vectors = load_vectors(vectors)
    name = evaluate or behaviour_of(loaded_vectors, "--evaluate")
    chosen = behaviour(name, split, limit=limit, max_new_tokens=max_new_tokens)  # type: ignore[arg-type]
    with show_progress():
        loaded = loading.load(model, loaded_vectors.metadata)
        loaded.require_fit(loaded_vectors, allow_mismatch=allow_mismatch)
        arms = [steering_arm(loaded_vectors, value) if value else BASE_ARM for value in strengths]
        conditions = run_evaluation(TransformersEngine(loaded), chosen.tasks, arms)
    results = {
        "schema_version": 1,
        "model": loaded.describe(),
        "behaviour": name,
        "split": split,
        "prompts": chosen.prompts,
        "conditions": [condition.to_json() for condition in conditions],
    }
    if out is not None:
        write_results(results, out, overwrite=overwrite)
    if json_output:
        return print_json(results)
    print_conditions(conditions, title=f"{name}, {split} prompts, 95 % intervals")
    if out is not None:
        say(f"Results: {out}")
    return None
