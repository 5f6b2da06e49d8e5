"""`steer2edit stress`."""

from pathlib import Path
from typing import Annotated

import typer

from steer2edit.cli.command import typed
from steer2edit.cli.options import FullRepliesOption, JsonOption, Judging, Loading, ModelArgument
from steer2edit.settings import shared


def _list_tests(wanted: bool) -> bool:
    """Show the tests and end, if that is wanted."""
    if not wanted:
        return False
    from steer2edit.cli.stress_output import print_tests
    from steer2edit.stress import all_tests

    print_tests(all_tests())
    raise typer.Exit


def stress(
    model: ModelArgument,
    edit: Annotated[Path, typer.Option(metavar="DIR", help="The edit to be tested: a directory that convert wrote.")],
    out: Annotated[Path, typer.Option(help="Run folder. A run that is there already goes on.")],
    judging: Judging,
    loading: Loading,
    full: Annotated[
        bool,
        typer.Option("--full/--quick", help="Spend an hour, not ten minutes, of a small model on two idle cores."),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEST", help="A test, or a group of them, in place of the contract; may be given several times."
        ),
    ] = None,
    list_tests: Annotated[
        bool,
        typer.Option(
            "--list", is_eager=True, callback=_list_tests, help="Show all tests with their groups and sources."
        ),
    ] = False,
    vectors: Annotated[
        Path | None,
        typer.Option(
            help="The steering vectors the edit was made from; by default vectors.safetensors in the edit's directory "
            "or in the two above it, if it is the one the edit names."
        ),
    ] = None,
    attacks: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Ready attack prompts as published (JailbreakBench, ADV-LLM, GCG logs, tables, text): a test of its "
            "own; may be given several times.",
        ),
    ] = None,
    harmful: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Requests that should be refused, instead of the built-in held-out ones: a file, or "
            "hub:OWNER/NAME/FILE, in the formats of `evaluate --list`.",
        ),
    ] = None,
    benign: Annotated[
        str | None, typer.Option(metavar="FILE", help="Requests that should be answered, in the same way.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="Strength that the edit is tested at; 1 is the edit as it is, 0 the base.")
    ] = 1.0,
    limit: shared.Limit = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply, where a test has none of its own.")] = 24,
    card: Annotated[
        bool, typer.Option("--card", help="Write the scorecard into the edit's model card, README.md.")
    ] = False,
    full_replies: FullRepliesOption = False,
    allow_mismatch: shared.AllowMismatch = False,
    seed: shared.Seed = 0,
    json_output: JsonOption = False,
) -> None:
    """State the contract of an edit: what is left of its gain under attack, in 4 bits, after tuning; resumable.

    Base, steering and ROSI at equal drift and the edit are compared in every condition. --only has further tests:
    side effects, and whether the named components carry the behaviour.

    \b
    Example:
    steer2edit stress smollm2 --edit edit --out stress-run
    """  # fmt: skip
    from steer2edit.artifacts import load_edit
    from steer2edit.artifacts.edits.scorecard_section import require_card, write_scorecard_section
    from steer2edit.artifacts.run_folder import begun_with
    from steer2edit.cli.console import print_json, say
    from steer2edit.cli.stress_output import print_scorecard
    from steer2edit.engines import TransformersEngine
    from steer2edit.evaluation import find_scorer
    from steer2edit.progress import show_progress
    from steer2edit.report import write_stress_page
    from steer2edit.stress import (
        StressInput,
        StressOptions,
        all_tests,
        asked_prompts,
        choose_tests,
        file_test,
        given_vectors,
        require_unseen,
        run_stress,
        vectors_beside,
    )

    options = StressOptions(
        "full" if full else "quick", harmful, benign, limit, strength, max_new_tokens, judging.scorer, seed
    )
    judge = judging.judge()
    find_scorer(judging.scorer, judge)  # as below: what is wrong shall show before a model is loaded
    files = [file_test(path) for path in attacks or ()]
    known = {test.name: test for test in [*all_tests(), *(test for test, _ in files)]}
    tests = choose_tests(known.values(), [*only, *(test.name for test, _ in files)] if only else ())
    asked_prompts(options)  # what is wrong with the data or the edit shall show before a model is loaded
    loaded_edit = load_edit(edit)
    if card:
        options.require_own_strength()
        require_card(edit)
    found = (
        vectors_beside(edit, loaded_edit)
        if vectors is None
        else given_vectors(vectors, loaded_edit, allow_mismatch=allow_mismatch)
    )
    require_unseen(loaded_edit, found, [request for _, requests in files for request in requests], ())
    with show_progress():
        base = loading.load(model, begun_with(out), loaded_edit.metadata, {} if found is None else found.metadata)
        given = StressInput(TransformersEngine(base), loaded_edit, options, found, allow_mismatch, judge)
        result = run_stress(
            given, tests, out, lambda text: None if json_output else say(text), name=edit.resolve().name,
            others=[test for test in known.values() if test not in tests], command=typed(),
        )  # fmt: skip
    page = write_stress_page(out, full_replies=full_replies)
    if card:
        write_scorecard_section(edit, result.card_section())
    if json_output:
        return print_json(result.to_json())
    print_scorecard(result)
    say(f"\nScorecard: {out / 'scorecard.json'}\nReport: {page}\nReplies: {out / 'replies'}")
    if card:
        say(f"Model card: {edit / 'README.md'}")
    return None
