"""`steer2edit steer`."""

from typing import Annotated

import typer

from steer2edit.cli.options import Loading, Measuring, ModelArgument, VectorsArgument
from steer2edit.settings import shared
from steer2edit.settings.declared import read_numbers


def steer(
    model: ModelArgument,
    vectors: VectorsArgument,
    measuring: Measuring,
    loading: Loading,
    strength: Annotated[str, typer.Option(help="Strengths, separated by commas.")] = "0,0.1,0.2,0.3",
    evaluate: shared.Behaviour = None,
    max_new_tokens: shared.MaxNewTokens = None,
    allow_mismatch: shared.AllowMismatch = False,
) -> None:
    """Validate vectors by activation steering: how the attribute and the damage grow with strength.

    \b
    Example:
    steer2edit steer smollm2 vectors.safetensors --strength 0,0.1,0.2,0.3 \\
      --evaluate safety
    """
    strengths = read_numbers("--strength", strength)
    from steer2edit.artifacts import load_vectors
    from steer2edit.cli.console import print_conditions, print_unscored
    from steer2edit.engines import TransformersEngine
    from steer2edit.evaluation import BASE_ARM, behaviour, behaviour_of, steering_arm
    from steer2edit.evaluation import evaluate as run_evaluation
    from steer2edit.progress import show_progress
    from steer2edit.steering import prompt_digests, require_no_overlap

    measuring.require_free()
    loaded_vectors = load_vectors(vectors)
    split, source = measuring.split, evaluate or behaviour_of(loaded_vectors, "--evaluate")
    chosen = behaviour(source, split, limit=measuring.limit, max_new_tokens=max_new_tokens)
    asked = prompt_digests(prompt for prompts in chosen.prompts.values() for prompt in prompts)
    require_no_overlap({"vector": loaded_vectors.metadata.get("prompts", ()), split.replace("_", "-"): asked})
    with show_progress():
        loaded = loading.load(model, loaded_vectors.metadata)
        loaded.require_fit(loaded_vectors, allow_mismatch=allow_mismatch)
        arms = [steering_arm(loaded_vectors, value) if value else BASE_ARM for value in strengths]
        conditions = run_evaluation(TransformersEngine(loaded), chosen.tasks, arms)
    results = {
        "schema_version": 1,
        "model": loaded.describe(),
        "behaviour": chosen.name,
        "split": split,
        "prompts": chosen.prompts,
        "conditions": [condition.to_json() for condition in conditions],
        "unscored": chosen.unscored,
    }
    title = f"{chosen.name}, {split} prompts, 95 % intervals"

    def show() -> None:
        print_conditions(conditions, title)
        print_unscored(chosen.unscored)

    measuring.hand_out(results, show)
