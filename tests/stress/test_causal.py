"""Parts of an edit: exact algebra, planted carriers, and controls that behave as controls."""

import json
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from planted_subject import CARRIER, DECOYS, SITE, planted_edit, planted_model, planted_subject

from engine_contract import random_edits
from families import tiny_model
from steer2edit.core import Site, SiteEdit, WeightEdit
from steer2edit.errors import InvalidValueError
from steer2edit.stress.components import components, counts_of
from steer2edit.stress.findings import Finding, StressResult
from steer2edit.stress.parts import (
    component_norms,
    edited_count,
    input_directions_of,
    only,
    parts_of,
    random_components,
    shuffled,
    strongest,
)
from steer2edit.stress.subject import Subject

FAMILIES = ("llama", "qwen3_moe", "falcon_h1")  # dense; wide sites; heads of a mixer
check = partial(components, top=1, quick_draws=2)


def random_edit(family: str) -> WeightEdit:
    return random_edits(tiny_model(family), [1.0], rho=0.15)[0].edit


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_top_and_rest_are_the_edit(family: str) -> None:
    edit = random_edit(family)
    chosen = strongest(edit, 5)
    top, rest = (only(edit, own) for own in (chosen, {site: ~mask for site, mask in chosen.items()}))
    assert edited_count(top) == 5
    assert [c for c, _, _ in top.components()] == sorted(
        (c for c, _, _ in edit.top_components(5)), key=lambda c: (c.site, c.index)
    )
    for site, whole in edit.sites.items():
        one, other = top.sites[site], rest.sites[site]
        assert torch.equal(one.row + other.row, whole.row)
        assert torch.equal(one.magnitude + other.magnitude, whole.magnitude)
        assert not bool((one.row * other.row).any())
        assert one.output_direction is whole.output_direction  # an engine shares it over a batch
        assert one.experts == whole.experts
        groups = one.row.view(-1, one.component_width)
        assert torch.equal(groups.any(dim=1), chosen[site] & whole.row.view_as(groups).any(dim=1))


@pytest.mark.parametrize("family", FAMILIES)
def test_directions_are_the_methods(family: str) -> None:
    """k_i = W_iᵀu / ‖·‖ of the edited components is what the edit's own rows hold, up to their λ."""
    model, edit = tiny_model(family), random_edit(family)
    directions = input_directions_of(model, edit)
    for site, own in edit.sites.items():
        rows = own.row.view(-1, own.component_width)
        torch.testing.assert_close(own.magnitude[:, None] * directions[site], rows, rtol=1e-4, atol=1e-5)
    site = next(iter(edit.sites))
    if model.sites[site].sizes is None:
        own = edit.sites[site]
        dense = (model.sites[site].weight.T.double() @ own.output_direction.double()).view(-1, own.component_width)
        expected = dense / dense.norm(dim=1, keepdim=True)
        torch.testing.assert_close(directions[site].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_components(family: str) -> None:
    model, edit = tiny_model(family), random_edit(family)
    chosen, directions = strongest(edit, 5), input_directions_of(model, edit)
    drawn, unedited = random_components(edit, chosen, directions, seeded())
    again, _ = random_components(edit, chosen, directions, seeded())
    other, _ = random_components(edit, chosen, directions, seeded(1))
    assert edited_count(drawn) == 5
    squares = [sum(float(e.row.square().sum()) for e in one.sites.values()) for one in (drawn, only(edit, chosen))]
    assert squares[0] == pytest.approx(squares[1], rel=1e-5)
    assert [c for c, _, _ in drawn.components()] == [c for c, _, _ in again.components()]
    assert [c for c, _, _ in drawn.components()] != [c for c, _, _ in other.components()]
    for block in {site.block for site in edit.sites}:  # heads for heads, neurons for neurons
        own = [site for site in edit.sites if site.block == block]
        before = sum(int(chosen[site].sum()) for site in own)
        assert sum(int(drawn.sites[site].magnitude.count_nonzero()) for site in own) == before
    for site, one in drawn.sites.items():
        moved = one.magnitude != 0
        assert not bool((moved & chosen[site]).any())
        if unedited:
            assert not bool(edit.sites[site].magnitude[moved].any())
        assert torch.equal(one.magnitude[moved] < 0, edit.sites[site].importance[moved] < 0)
        torch.testing.assert_close(component_norms(one), one.magnitude.abs(), rtol=1e-5, atol=1e-7)


def test_where_all_are_edited_random_ones_are_edited_too() -> None:
    edit = planted_edit(dict.fromkeys(range(48), 1.0))
    directions = input_directions_of(planted_model(), edit)
    drawn, unedited = random_components(edit, strongest(edit, 3), directions, seeded())
    assert not unedited
    assert edited_count(drawn) == 3
    assert not bool(drawn.sites[SITE].magnitude[:3].any())  # ties go to the first: those are the top


def test_no_random_control() -> None:
    edit = planted_edit(dict.fromkeys(range(4), 1.0))
    usable = torch.zeros(48, 1)
    usable[:2] = 1
    with pytest.raises(InvalidValueError, match="3 components of mlp are to be replaced, but only 2 can write"):
        random_components(edit, strongest(edit, 3), {SITE: usable}, seeded())


@pytest.mark.parametrize("family", FAMILIES)
def test_shuffled(family: str) -> None:
    model, edit = tiny_model(family), random_edit(family)
    moved = shuffled(edit, input_directions_of(model, edit), seeded())
    differs = 0
    for site, own in edit.sites.items():
        one = moved.sites[site]
        sizes, before = component_norms(one), component_norms(own)
        torch.testing.assert_close(sizes.sort().values, before.sort().values, rtol=1e-5, atol=1e-7)
        kept = torch.isclose(sizes, before, rtol=1e-5) & (before > 0)
        assert not bool(kept.any())  # no magnitude stays where it was
        assert torch.equal(one.magnitude[sizes > 0] < 0, own.importance[sizes > 0] < 0)
        assert one.output_direction is own.output_direction
        differs += int(before.count_nonzero())
    assert differs


def test_a_site_of_one_component_stays() -> None:
    one = SiteEdit(torch.eye(4)[0], torch.tensor([3.0, 4.0]), torch.tensor([5.0]), torch.tensor([0.5]))
    edit = WeightEdit({Site(0, "attn"): one})
    assert shuffled(edit, {Site(0, "attn"): torch.tensor([[0.6, 0.8]])}, seeded()).sites[Site(0, "attn")] is one


def lines(result: StressResult) -> dict[str, Finding]:
    json.dumps(result.to_json(), allow_nan=False)
    return {finding.name: finding for finding in result.findings}


def values_of(finding: Finding, arm: str) -> set[object]:
    return set(finding.values[arm])


def test_one_component_carries_it() -> None:
    subject = planted_subject(planted_edit({CARRIER: 1.0, **DECOYS}))
    result = check(subject)
    found = lines(result)
    assert set(found) == {
        "edit", "top-1", "all-but-top-1", "random-1", "shuffled",
    }  # fmt: skip
    assert found["edit"].outcome == "held"
    assert found["edit"].values == {"base": [False] * 12, "edit": [True] * 12}
    top = found["top-1"]
    assert top.outcome == "held"
    assert values_of(top, "top 1") == {True}
    assert values_of(top, "random 1, draw 2") == {False}
    assert re.search(r"carry 100 % \[\d\d, 1\d\d\] of the gain, 1 random ones 0 % \[-\d\d, \d\d\]", top.sentence)
    assert top.sentence.endswith("the named components carry more than others, and most of it.")
    rest = found["all-but-top-1"]
    assert (rest.outcome, values_of(rest, "all but top 1")) == ("held", {False})
    assert re.search(r"carry 0 % \[-\d\d, \d\d\] of the gain", rest.sentence)
    assert found["random-1"].outcome == found["shuffled"].outcome == "control"
    assert values_of(found["shuffled"], "shuffled 1") == {False}
    facts = {part["label"]: part for part in result.facts["parts"]}
    assert facts["edit"]["components"] == 6
    assert facts["top 1"]["kl"]["value"] == pytest.approx(0, abs=1e-6)  # silent on benign requests
    assert set(result.replies["top 1"]["harmful"]) == {"N."}
    assert set(result.replies["base"]["harmful"]) == {"Yes"}


def test_a_named_component_that_carries_nothing() -> None:
    """The edit's largest λ is at a silent neuron: the check says so, and that the others carry the gain."""
    found = lines(check(planted_subject(planted_edit({20: 2.0, CARRIER: 1.0, 1: 0.02}), count=18)))
    assert found["edit"].outcome == "held"
    assert found["top-1"].outcome == "failed"
    assert found["top-1"].sentence.endswith("the named components carry no more than others.")
    assert found["all-but-top-1"].outcome == "failed"
    assert found["all-but-top-1"].sentence.endswith("the others carry it without the named ones.")


def test_a_random_control_that_is_none() -> None:
    """Every neuron reads the same, so that random ones do what the named one does."""
    subject = planted_subject(planted_edit({CARRIER: 1.0, 1: 0.02}), count=18)
    mlp = subject.model.layers[SITE.layer].mlp
    with torch.no_grad():
        for projection in (mlp.gate_proj, mlp.up_proj):
            projection.weight[:] = projection.weight[CARRIER].clone()
        mlp.down_proj.weight.mul_(0.01)  # 48 neurons write it now
    found = lines(check(subject))
    assert found["top-1"].outcome == "failed"
    assert found["random-1"].outcome == "failed"
    assert "no control, for it does what the edit does" in found["random-1"].sentence


def test_without_a_gain_nothing_is_attributed() -> None:
    found = lines(check(planted_subject(planted_edit({20: 1.0, 21: 0.5}), count=18)))
    assert found["edit"].outcome == "failed"
    assert {found[name].outcome for name in ("top-1", "all-but-top-1", "random-1", "shuffled")} == {"open"}
    assert "an unknown share" in found["top-1"].sentence


def test_an_edit_of_nothing() -> None:
    result = check(planted_subject(planted_edit({}), count=18))
    found = lines(result)
    assert set(found) == {"edit"}
    assert found["edit"].outcome == "failed"
    assert found["edit"].values["edit"] == found["edit"].values["base"]


def test_the_strength_that_is_tested() -> None:
    """At a strength of 0.01 the carrier writes too little to change a reply: parts are tested at it, too."""
    found = lines(check(planted_subject(planted_edit({CARRIER: 1.0, 1: 0.5}), strength=0.01)))
    assert values_of(found["edit"], "edit") == {False}
    assert values_of(found["top-1"], "top 1") == {False}


def test_counts() -> None:
    edit = planted_edit({neuron: 1.0 + neuron for neuron in range(40)})
    subject = planted_subject(edit, limit=5)
    full = replace(subject, suite="full")
    assert counts_of(subject) == [10]
    assert counts_of(full) == [10, 20]
    assert counts_of(planted_subject(planted_edit(DECOYS))) == [2]  # at most half
    assert counts_of(replace(planted_subject(planted_edit({})), suite="full")) == []


def test_draws_differ_and_are_repeatable() -> None:
    subject = planted_subject(planted_edit({CARRIER: 1.0, **DECOYS}))

    def drawn(own: Subject) -> list[list[object]]:
        parts = parts_of(own.edit, [2], input_directions_of(own.model, own.edit), 5, own.seed)
        return [[c for c, _, _ in part.edit.components()] for part in parts if part.kind in ("random", "shuffled")]

    first = drawn(subject)
    assert len(first) == 8
    assert first == drawn(subject)
    assert len({str(one) for one in first}) > 6
