"""`steer2edit compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steer2edit.cli.command import typed
from steer2edit.cli.options import (
    AllowMismatchOption,
    BehaviourOption,
    ChatTemplateOption,
    DataOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    LayoutOption,
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


def compare(
    model: ModelArgument,
    vectors: VectorsArgument,
    out: Annotated[Path, typer.Option(help="Run folder. A comparison that is there already goes on.")],
    behaviour: BehaviourOption = None,
    edit: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="A further edit, such as a search's; several times.")
    ] = None,
    kl: Annotated[
        list[float], typer.Option(help="Drift to compare at, KL to the base in nats per token; several times.")
    ] = [0.01, 0.03, 0.1, 0.2],  # noqa: B006
    suppress: Annotated[
        bool,
        typer.Option("--suppress", help="Take the behaviour away: negative strengths, and directional ablation too."),
    ] = False,
    utility: Annotated[
        str | None, typer.Option(help="A task with an accuracy, e.g. commonsenseqa: what is lost of it is a cost.")
    ] = None,
    data: DataOption = None,
    limit: Annotated[
        int, typer.Option(min=2, help="Use at most this many items of every set; built in are 300 at most.")
    ] = 300,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    layout: LayoutOption = None,
    chat_template: ChatTemplateOption = None,
    template_arg: TemplateArgOption = None,
    trust_remote_code: TrustOption = False,
    allow_mismatch: AllowMismatchOption = False,
    seed: SeedOption = 0,
    json_output: JsonOption = False,
) -> None:
    """Compare steering, edits and baselines on the same held-out items, each as a curve over its strength; resumable.

    \b
    Example:
    steer2edit compare smollm2 vectors.safetensors --edit run/edit --out comparison
    """
    from steer2edit.artifacts import load_edit, load_vectors
    from steer2edit.artifacts.run_folder import begun_with, write_json
    from steer2edit.cli.console import print_conditions, print_json, print_table, say
    from steer2edit.engines import RememberingEngine, TransformersEngine
    from steer2edit.evaluation import behaviour_of
    from steer2edit.models import load_model
    from steer2edit.progress import show_progress
    from steer2edit.report.comparison_page import figure_tables, reasons, write_comparison_page
    from steer2edit.report.run_results import ComparisonResults, read_results
    from steer2edit.search import ComparisonOptions, comparison_methods, run_comparison

    loaded_vectors, edits = load_vectors(vectors), {path.resolve().name: load_edit(path) for path in edit or ()}
    if len(edits) < len(edit or ()):
        raise typer.BadParameter("two --edit have the same name: rename a directory.")
    options = ComparisonOptions(
        behaviour or behaviour_of(loaded_vectors, "--behaviour"), tuple(kl), suppress, utility, named_sets(data or ()),
        limit, seed,
    )  # fmt: skip
    options.behaviours()  # what is wrong with the data shall show before a model is loaded

    def narrate(text: str, conditions: Sequence["Condition"]) -> None:
        if not json_output:
            say(f"\n{text}", style="bold")
            if conditions:
                print_conditions([condition.to_json() for condition in conditions])

    with show_progress():
        loaded = load_model(
            model, dtype=dtype, device=device, layout=layout, chat_template=chat_template,
            trust_remote_code=trust_remote_code,
            template_args=named_values("--template-arg", template_arg),
            like=(begun_with(out), loaded_vectors.metadata),
        )  # fmt: skip
        methods, left_out = comparison_methods(
            loaded, loaded_vectors, edits, suppress=suppress, allow_mismatch=allow_mismatch
        )
        results = run_comparison(
            RememberingEngine(TransformersEngine(loaded)), loaded_vectors, methods, options, out, narrate,
            left_out=left_out, command=typed(),
        )  # fmt: skip
    write_json(out / "results.json", results)
    write_comparison_page(results, out / "report.html")
    if json_output:
        return print_json(results)
    found = read_results(results, ComparisonResults)
    columns, values, against = figure_tables(found)
    say()
    columns = ["", *(column.replace(", ", ",\n") for column in columns)]
    print_table(columns, values, "Held-out items, 95 % bootstrap intervals")
    say()
    print_table(columns, against, "Against steering: differences and ratios, paired")
    for line in ("", *reasons(found), "", *results["summary"]):
        say(line)
    say(f"\nReport: {out / 'report.html'}\nAll figures: {out / 'results.json'}")
    return None
