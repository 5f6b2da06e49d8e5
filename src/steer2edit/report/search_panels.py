"""A search's figures with the words that go with them."""

from steer2edit.evaluation import COST, attribute_of, metric_name
from steer2edit.report.panels import Panel, figure_json
from steer2edit.report.run_results import RunResults
from steer2edit.report.search_tradeoff import held_out_figure, validation_figure
from steer2edit.report.sensitivity import complete_trials, searched, sensitivity_figure
from steer2edit.report.tradeoff import DAMAGE, Plane, beyond, right_edge


def search_tradeoff_panels(run: RunResults) -> list[tuple[Panel, ...]]:
    """By damage metric, what a search is limited in first: (validation items, held-out items), as far as measured."""
    found = []
    for damage in sorted(DAMAGE, key=lambda name: name != COST):
        plane = Plane.of(run, damage)
        validation = [_validation_panel(run, plane)] if plane.drawable(run.validation.conditions) else []
        held_out = [_held_out_panel(run, plane)] if plane.drawable(run.held_out.conditions) else []
        if validation or held_out:
            found.append((*validation, *held_out))
    return found


def _validation_panel(run: RunResults, plane: Plane) -> Panel:
    x, y = metric_name(plane.damage), metric_name(plane.attribute)
    trials = plane.drawable(run.validation.of("edit"))
    complete = sum(trial.is_complete for trial in trials)
    return Panel(
        name=f"tradeoff-{plane.damage}",
        title=x.short,
        data=figure_json(validation_figure(run, plane.damage)),
        caption=_validation_caption(run, plane, len(trials) - complete),
        alternative=(
            f"Scatter plot of {y.short} against {x.short} on validation items: {complete} trials measured in full, "
            f"{len(trials) - complete} stopped early, {len(run.front_trials)} on the front."
        ),
    )


def _validation_caption(run: RunResults, plane: Plane, stopped: int) -> str:
    better = "Up" if attribute_of(run.behaviour)[1] > 0 else "Down"
    caption = f"Validation items. {better} and to the left is better. A solid mark is an edit measured on all items"
    if stopped:
        caption += "; a faint one was stopped early, and stands where the share of the items it saw put it"
    caption += f". The front holds what no other edit within the budget beats in both, by {metric_name(COST).short}."
    edge = right_edge(run, plane)
    if edge is not None:
        bound = metric_name(plane.damage).bound(edge)
        caption += f" Beyond {bound} lie {beyond(run, plane, edge)} more: double-click the plot to see all."
    filtered = run.trials.get("tried", 0) - len(plane.drawable(run.validation.of("edit")))
    if filtered > 0:
        caption += f" Not drawn: {filtered} trials that were thrown out before they were measured."
    return caption


def _held_out_panel(run: RunResults, plane: Plane) -> Panel:
    x, y = metric_name(plane.damage), metric_name(plane.attribute)
    points = "; ".join(
        f"{c.label}: {y.in_cells.value(c.metrics[y.name])} at {x.short} {x.in_cells.value(c.metrics[x.name])}"
        for c in plane.drawable(run.held_out.conditions)
    )
    return Panel(
        name=f"held-out-{plane.damage}",
        title=x.short,
        data=figure_json(held_out_figure(run, plane.damage)),
        caption=(
            "Held-out items, on which nothing was chosen, with 95 % intervals: the front of edits (at most eight of "
            "it) and activation steering at the strengths of the sweep."
        ),
        alternative=f"Scatter plot of {y.short} against {x.short}. Held-out: {points}.",
    )


def sensitivity_panel(run: RunResults) -> Panel | None:
    """Attribute and cost against every searched parameter; `None` where nothing was measured or varied."""
    trials = complete_trials(run)
    parameters = searched(trials)
    if not parameters:
        return None
    symbols = ", ".join(parameter.symbol for parameter in parameters)
    return Panel(
        name="sensitivity",
        title="Sensitivity",
        data=figure_json(sensitivity_figure(run, trials, parameters)),
        caption=(
            f"The {len(trials)} edits that were measured on all validation items, ringed the recommended one; "
            "orange: beyond the budget. A column leaves out edits in which its parameter is off. The others vary along "
            "with it, and the search looks closer where it is good, so a column shows no effect of its parameter alone."
        ),
        alternative=f"Small scatter plots of attribute and KL against {symbols}, of {len(trials)} edits.",
    )
