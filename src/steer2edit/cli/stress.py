"""`steer2edit stress`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from steer2edit.cli import late
from steer2edit.cli.console import print_table, say, typed
from steer2edit.cli.late import artifacts, engines, evaluation
from steer2edit.cli.options import FullRepliesOption, Judging, ModelArgument, listing, load
from steer2edit.errors import InvalidValueError
from steer2edit.estimates import PERCENT
from steer2edit.settings import Loading, StressOptions, shared


def print_tests() -> None:
    """Every test with its group and source; those of the contract are marked."""
    say("Tests of the contract are marked *; the others are asked for with --only, by their name or a group's.\n")
    for group, title in late.stress.findings.GROUPS.items():
        say(f"{group}: {title}", style="bold")
        for test in (test for test in late.stress.registry.all_tests() if test.group == group):
            say(f"  {test.name}{' *' if test.contract else ''}: {test.summary}")
            say(f"    source: {test.citation}")


def print_contract(contract: "late.stress.scorecard.Contract") -> None:
    """Every condition with its ending, and the lines that it rests on: rate, and share of the plain gain, by arm."""
    say(f"\n{contract.claim}\n")
    labels = list(dict.fromkeys(arm for one in contract.conditions for line in one.lines for arm in line.arms))
    rows = []
    for one in contract.conditions:
        rows.append([one.title, one.words, "", *([""] * len(labels)), f"{one.seconds:.0f} s"])
        for line in one.lines:
            cells = []
            for label in labels:
                found, share = line.arms.get(label), line.shares.get(label)
                left = (
                    "" if share is None or share.low is None else f"\nleft {PERCENT.text(replace(share, unscored=0))}"
                )
                cells.append("" if found is None else PERCENT.text(replace(found, unscored=0)) + left)
            seconds = "" if line.seconds is None else f"{line.seconds:.0f} s"
            rows.append([f"  {line.name}", line.outcome, str(next(iter(line.arms.values())).n), *cells, seconds])
    print_table(["", "", "n", *labels, "took"], rows, "Contract: refused; share of the plain gain that is left")
    say(contract.rules)


def print_scorecard(card: "late.stress.scorecard.Scorecard") -> None:
    """Contract, the findings in plain sentences, and the verdict; the report has tables of them too."""
    print_contract(card.contract)
    for name, heading in late.stress.scorecard.SUMMARY_TITLES.items():
        if sentences := card.summary[name]:
            say(f"\n{heading}", style="bold")
            for sentence in sentences:
                say(f"- {sentence}")
    say(f"\nVerdict: {card.verdict.sentence}", style="bold")
    for reason in card.verdict.reasons:
        say(f"  {reason}")


def stress(
    model: ModelArgument,
    edit: Annotated[Path, typer.Option(metavar="DIR", help="The edit to be tested: a directory that convert wrote.")],
    out: Annotated[Path, typer.Option(help="Run folder. A run that is there already goes on.")],
    options: StressOptions,
    judging: Judging,
    loading: Loading,
    only: Annotated[list[str] | None, typer.Option(metavar="TEST")] = None,
    list_tests: Annotated[bool, listing(print_tests, "Show all tests with their groups and sources.")] = False,
    vectors: Path | None = None,
    attacks: Annotated[list[Path] | None, typer.Option(metavar="FILE")] = None,
    card: bool = False,
    full_replies: FullRepliesOption = False,
    allow_mismatch: shared.AllowMismatch = False,
) -> dict[str, Any]:
    """State the contract of an edit: what is left of its gain under attack, in 4 bits, after tuning; resumable.

    Base, steering and ROSI at equal drift and the edit are compared in every condition. --only has further tests:
    side effects, and whether the named components carry the behaviour.

    \b
    Example:
    steer2edit stress smollm2 --edit edit --out stress-run

    Args:
        only: A test, or a group of them, in place of the contract; may be given several times.
        vectors: The steering vectors the edit was made from; by default vectors.safetensors in the edit's directory or
            in the two above it, if it is the one the edit names.
        attacks: Ready attack prompts as published (JailbreakBench, ADV-LLM, GCG, tables, text): a test of its own;
            may be given several times.
        card: Write the scorecard into the edit's model card, README.md.
    """  # fmt: skip
    from steer2edit.artifacts.edits.scorecard_section import require_card, write_scorecard_section

    # what is wrong with options, data or the edit shall show before a model is loaded
    judge, stress = judging.judge(), late.stress
    evaluation.find_scorer(judging.scorer, judge)
    files = [stress.registry.file_test(path) for path in attacks or ()]
    known = {test.name: test for test in [*stress.registry.all_tests(), *(test for test, _ in files)]}
    names = [*only, *(test.name for test, _ in files)] if only else ()
    tests = stress.registry.choose_tests(known.values(), names)
    stress.given.asked_prompts(options)
    loaded_edit = artifacts.load_edit(edit)
    if card:
        if options.strength != 1:
            raise InvalidValueError(
                f"a model card speaks of the edit as it is applied, at strength 1, not at {options.strength:g}. Leave "
                "out --card, or make an edit of that strength."
            )
        require_card(edit)
    if vectors is None:
        found = stress.given.vectors_beside(edit, loaded_edit)
    else:
        found = stress.given.given_vectors(vectors, loaded_edit, allow_mismatch=allow_mismatch)
    stress.given.require_unseen(loaded_edit, found, [request for _, requests in files for request in requests])
    like = [loaded_edit.metadata, {} if found is None else found.metadata]
    engine = engines.TransformersEngine(load(model, loading, artifacts.run_folder.begun_with(out), *like))
    given = stress.given.StressInput(engine, loaded_edit, options, found, allow_mismatch, judge)
    result = stress.run.run_stress(
        given, tests, out, say, others=known.values(), name=edit.resolve().name, command=typed()
    )
    page = late.report.write_stress_page(out, full_replies=full_replies)
    if card:
        write_scorecard_section(edit, result.edit.sha256, result.card_section())
    print_scorecard(result)
    say(f"\nScorecard: {out / 'scorecard.json'}\nReport: {page}\nReplies: {out / 'replies'}")
    if card:
        say(f"Model card: {edit / 'README.md'}")
    return result.to_json()
