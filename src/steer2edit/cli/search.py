"""`steer2edit search`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steer2edit.cli.command import typed
from steer2edit.cli.engines import EngineArgOption, parse_engine, running_engine
from steer2edit.cli.options import (
    AllowMismatchOption,
    AllowMissingOption,
    BehaviourOption,
    ChatTemplateOption,
    DataOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    LayoutOption,
    LimitOption,
    ModelArgument,
    SeedOption,
    TemplateArgOption,
    TrustOption,
    VectorsArgument,
    named_sets,
    named_values,
)

if TYPE_CHECKING:
    from steer2edit.evaluation import Condition


def search(
    model: ModelArgument,
    vectors: VectorsArgument,
    out: Annotated[Path, typer.Option(help="Run folder. A search that is there already goes on.")],
    behaviour: BehaviourOption = None,
    strategy: Annotated[
        str, typer.Option(help="tpe, nsga2 or random (Optuna), or grid: the paper's coarse grid, then refined ones.")
    ] = "tpe",
    trials: Annotated[
        int, typer.Option(min=1, help="Configurations to try in all. Ask for more later to extend a search.")
    ] = 96,
    coordinates: Annotated[
        str,
        typer.Option(
            help="paper: rho_attn, rho_mlp, alpha; threshold: a threshold and a gain per block; drift: thresholds, the "
            "balance of the blocks and the drift to spend, from which the strength follows."
        ),
    ] = "paper",
    blocks: Annotated[str, typer.Option(help="Blocks that may be edited: attn, mlp or attn,mlp.")] = "attn,mlp",
    max_shift: Annotated[
        bool, typer.Option("--max-shift", help="Beyond the paper: search the limit kappa of the mean shift too.")
    ] = False,
    spare: Annotated[
        str | None,
        typer.Option(help="Beyond the paper: spare replies to benign requests, `benign` or a file; searches the gain."),
    ] = None,
    max_kl: Annotated[float, typer.Option(min=0, help="Largest KL to the base on benign requests, nats/token.")] = 0.15,
    max_over_refusal: Annotated[
        float | None, typer.Option(min=0, max=1, help="Largest share of benign requests refused.")
    ] = None,
    min_utility: Annotated[
        float | None, typer.Option(min=0, max=1, help="Smallest accuracy on the task of --utility.")
    ] = None,
    utility: Annotated[
        str | None, typer.Option(help="A task with an accuracy, e.g. commonsenseqa or mmlu=FILE, measured too.")
    ] = None,
    target_kl: Annotated[
        float | None, typer.Option(min=0, help="Also compare edit and steering at strengths that spend this KL.")
    ] = None,
    strengths: Annotated[
        str | None, typer.Option(help="Steering strengths; by default those that spend 10 to 100 % of --max-kl.")
    ] = None,
    generation: Annotated[int, typer.Option(min=2, help="Trials proposed and measured together.")] = 16,
    engine: Annotated[
        str, typer.Option(help="transformers, or vllm for edits (steering still runs on transformers).")
    ] = "transformers",
    engine_arg: EngineArgOption = None,
    data: DataOption = None,
    storage: Annotated[
        str | None, typer.Option(help="Optuna storage URL to share between machines; default: a journal in --out.")
    ] = None,
    study: Annotated[str, typer.Option(help="Name of the study in --storage, which may hold others.")] = "steer2edit",
    worker: Annotated[str, typer.Option(help="Name of this process, where several share a storage.")] = "main",
    limit: LimitOption = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest reply.")] = None,
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
    json_output: JsonOption = False,
) -> None:
    """Find the edit with most of a behaviour within a utility budget; resumable, with steering in the same run.

    \b
    Example:
    steer2edit search smollm2 vectors.safetensors --behaviour safety --out run
    """
    from steer2edit.artifacts import load_vectors
    from steer2edit.artifacts.run_folder import begun_with
    from steer2edit.cli.console import print_conditions, print_json, say
    from steer2edit.engines import RememberingEngine, RoutingEngine, TransformersEngine
    from steer2edit.evaluation import behaviour_of
    from steer2edit.models import load_model
    from steer2edit.progress import show_progress
    from steer2edit.recipes import search_and_report
    from steer2edit.search import SearchOptions, behaviours_of

    loaded_vectors = load_vectors(vectors)
    options = SearchOptions(
        behaviour=behaviour or behaviour_of(loaded_vectors, "--behaviour"),
        strategy=strategy, trials=trials, coordinates=coordinates,
        blocks=tuple(blocks.split(",")), max_shift=max_shift, spare=spare, max_kl=max_kl,
        max_over_refusal=max_over_refusal, min_utility=min_utility, utility=utility, target_kl=target_kl,
        strengths=numbers(strengths), generation=generation, storage=storage, study=study, worker=worker,
        data=named_sets(data or ()), limit=limit,
        max_new_tokens=max_new_tokens, seed=seed,
    )  # fmt: skip

    def narrate(text: str, conditions: Sequence["Condition"]) -> None:
        if not json_output:
            say(f"\n{text}", style="bold")
            if conditions:
                print_conditions([condition.to_json() for condition in conditions])

    engine_args = parse_engine(engine, engine_arg or ())
    behaviours_of(options)  # what is wrong with the data shall show before a model is loaded
    with show_progress():
        loaded = load_model(
            model, dtype=dtype, device=device, layout=layout, chat_template=chat_template,
            trust_remote_code=trust_remote_code,
            template_args=named_values("--template-arg", template_arg),
            like=(begun_with(out), loaded_vectors.metadata),
        )  # fmt: skip
        with running_engine(engine, loaded, engine_args) as runner:
            if engine == "vllm":
                runner = RoutingEngine(runner, TransformersEngine(loaded))
            results = search_and_report(
                loaded, loaded_vectors, options, out, narrate, command=typed(), engine=RememberingEngine(runner),
                allow_mismatch=allow_mismatch, allow_missing=allow_missing, force=force,
            )  # fmt: skip
    if json_output:
        return print_json(results)
    for line in results["summary"]:
        say(line)
    say(f"\nAdapter: {out / 'edit'}\nReport: {out / 'report.html'}\nAll figures: {out / 'results.json'}")
    return None


def numbers(text: str | None) -> tuple[float, ...]:
    """The numbers of a text such as `0.1,0.2`; none of an empty one."""
    if not text:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"--strengths takes numbers separated by commas, got {text!r}.") from error
