from typing import Any

import pytest

from steer2edit.core import Site
from steer2edit.errors import DataError
from steer2edit.report.run_results import read_results

Json = dict[str, Any]


def test_results_are_read_into_typed_fields(results: Json) -> None:
    run = read_results(results)
    assert run.diagnosis.sites[Site(10, "attn")].auroc == 0.75
    assert run.held_out.conditions[2].metrics["harmful_refused"].n == 20
    assert run.verification["checkpoint"].identical == 3


def test_parts_a_run_did_not_make_may_be_missing() -> None:
    run = read_results({"schema_version": 1, "title": "t", "behaviour": "safety", "attribute": "harmful_refused",
                        "direction": 1, "model": {"name": "m"}})  # fmt: skip
    assert run.held_out.conditions == ()
    assert run.chosen.within_limits is not None


def test_early_results_say_what_they_move_by_the_name_of_their_behaviour() -> None:
    early = {"schema_version": 1, "title": "t", "behaviour": "safety", "model": {"name": "m"}}
    for results in (early, {**early, "attribute": None, "direction": None}):
        run = read_results(results)
        assert (run.attribute, run.direction) == ("harmful_refused", 1)


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_another_schema_version_is_refused(results: Json, version: object) -> None:
    with pytest.raises(DataError, match=r"schema version .*reads 1"):
        read_results({**results, "schema_version": version})


def test_nan_is_refused_because_unscored_is_null(results: Json) -> None:
    results["held_out"]["conditions"][0]["metrics"]["kl"]["value"] = float("nan")
    with pytest.raises(DataError, match="write null for what could not be scored"):
        read_results(results)


def test_a_value_json_cannot_hold_is_refused(results: Json) -> None:
    with pytest.raises(DataError, match="not plain JSON"):
        read_results({**results, "settings": {"device": object()}})


def test_malformed_fields_are_named(results: Json) -> None:
    del results["title"]
    results["held_out"]["conditions"][1]["kind"] = "prayer"
    with pytest.raises(DataError, match=r"title: Field required; held_out\.conditions\.1\.kind: .*'base'"):
        read_results(results)


def test_a_wrong_site_name_is_refused(results: Json) -> None:
    results["diagnosis"]["sites"]["layer 3"] = {}
    with pytest.raises(DataError, match="not a site: 'layer 3'"):
        read_results(results)


@pytest.mark.parametrize("field", ["replies", "outcomes"])
def test_replies_that_are_not_aligned_with_the_prompts_are_refused(results: Json, field: str) -> None:
    results["held_out"]["conditions"][1][field]["harmful"].pop()
    with pytest.raises(DataError, match=rf"'steering 0.2' has 1 {field} for the 2 prompts of 'harmful'"):
        read_results(results)


def test_chat_prompts_become_text_and_malformed_ones_are_refused(results: Json) -> None:
    results["prompts"]["benign"][0] = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert read_results(results).prompts["benign"][0] == "system: Be kind.\n\nuser: Hi"
    results["prompts"]["benign"][0] = ["Hi"]
    with pytest.raises(DataError, match="each with role and content"):
        read_results(results)


def test_the_choice_is_recognised_by_parameters_and_strength(results: Json) -> None:
    run = read_results(results)
    assert [c.label for c in run.validation.conditions if run.chosen.is_choice(c)] == ["steering 0.2", "chosen edit"]


def test_without_a_choice_nothing_is_chosen(results: Json) -> None:
    del results["chosen"]
    run = read_results(results)
    assert not any(run.chosen.is_choice(c) for c in run.validation.conditions)


def test_limits_are_respected_broken_or_cannot_be_told(results: Json) -> None:
    # limits: NLL increase 0.2, benign refused 0.08
    run = read_results(results)
    verdicts = {c.label: run.chosen.within_limits(c) for c in run.validation.of("edit")}
    assert verdicts == {"chosen edit": True, "half of it": True, "too much": False, "not scored edit": None}
