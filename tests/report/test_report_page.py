import base64
import copy
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from steer2edit.core import WeightEdit
from steer2edit.errors import ArtifactError, DataError
from steer2edit.evaluation import metric_name
from steer2edit.evaluation.statistics import paired
from steer2edit.report import render_report, write_report
from steer2edit.report.html import metrics_of
from steer2edit.report.run_page import first_replies, reply_sets
from steer2edit.report.run_results import read_results
from steer2edit.tables import visible

Json = dict[str, Any]

HOSTILE = (
    "<script>alert(1)</script></script><!--<img src=x onerror=alert(1)>-->\"'><svg/onload=alert(1)> "
    ']]></style></textarea>{{ 7*7 }}{% raw %} %{x} <a href="javascript:alert(1)">&lt;b&gt;</a> '
    "\x1b[31m\x1b]8;;http://evil.example\x07 \x00 \u2028\u202e \ud83d"
)


class Page(HTMLParser):
    """Tags with attributes, scripts and styles apart, and the text that is shown."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.shown: list[str] = []
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attrs, content = self.scripts[-1]
            self.scripts[-1] = (attrs, content + data)
        elif self._inside == "style":
            self.styles.append(data)
        else:
            self.shown.append(data)

    @property
    def text(self) -> str:
        """The shown text, with runs of white space as one blank."""
        return " ".join(" ".join(self.shown).split())

    def embedded(self, name: str) -> Any:
        """The JSON block with this id."""
        return json.loads(next(content for attrs, content in self.scripts if attrs.get("id") == name))


def with_strings(value: Any, text: str) -> Any:
    """The JSON value with every string replaced, keys stay."""
    if isinstance(value, str):
        return text
    if isinstance(value, list):
        return [with_strings(entry, text) for entry in value]
    if isinstance(value, dict):
        return {
            key: entry if key in ("kind", "behaviour", "attribute") else with_strings(entry, text)
            for key, entry in value.items()
        }
    return value


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for entry in entries for text in strings(entry)]


def structure(page: Page) -> list[tuple[str, list[str]]]:
    return [(tag, sorted(attrs)) for tag, attrs in page.tags]


def verdicts(page: Page) -> list[str]:
    """The colours of the answers on the first screen."""
    classes = [attrs.get("class") or "" for _, attrs in page.tags]
    return [name.removeprefix("answer ") for name in classes if name.startswith("answer ")]


@pytest.fixture
def hostile(results: Json) -> Json:
    """Every text of the results is hostile, also a setting's, a package's and a verified artifact's name."""
    return with_strings(results, HOSTILE) | {
        "settings": {HOSTILE: HOSTILE},
        "versions": {HOSTILE: HOSTILE},
        "verification": {HOSTILE: {"identical": 1, "n": 2}},
    }


def test_hostile_text_adds_no_tag_and_no_attribute(results: Json, hostile: Json, edit: WeightEdit) -> None:
    harmless = json.loads(json.dumps(hostile).replace(json.dumps(HOSTILE)[1:-1], "x"))
    page = Page(render_report(hostile, edit))
    assert structure(page) == structure(Page(render_report(harmless, edit)))
    assert visible(HOSTILE).split() == page.text[page.text.index("<script>alert") :].split()[: len(HOSTILE.split())]


def test_hostile_text_is_shown_in_full_and_never_raw(hostile: Json, edit: WeightEdit) -> None:
    source = render_report(hostile, edit)
    without_scripts = re.sub(r"<script>.*?</script>", "", source, flags=re.DOTALL)
    assert "<img" not in without_scripts
    assert "<svg" not in without_scripts
    assert "onerror" in without_scripts  # it is quoted, not dropped
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e\ud800-\udfff]", without_scripts)
    source.encode("utf-8")


def test_hostile_text_cannot_leave_the_embedded_json(hostile: Json, edit: WeightEdit) -> None:
    source = render_report(hostile, edit)
    block = re.search(r'<script type="application/json" id="figures">(.*?)</script>', source, flags=re.DOTALL)
    assert block is not None
    assert not set("<>&'") & set(block[1])
    json.loads(block[1])


def test_hostile_text_is_no_markup_for_plotly(hostile: Json, edit: WeightEdit) -> None:
    figures = Page(render_report(hostile, edit)).embedded("figures")
    texts = strings(figures)
    assert any("&lt;script&gt;" in text for text in texts)
    for text in texts:
        assert "<" not in re.sub(r"</?b>|<br>|</?extra>|^weakened \(λ < 0\)$", "", text)


def test_the_page_loads_nothing(hostile: Json, edit: WeightEdit) -> None:
    page = Page(render_report(hostile, edit))
    loading = {"link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "source", "image", "use"}
    assert not loading & {tag for tag, _ in page.tags}
    for tag, attrs in page.tags:
        assert not {"src", "srcset", "action", "data", "poster", "background"} & attrs.keys(), tag
        assert (attrs.get("href") or "#").startswith("#")
        assert not any(name.startswith("on") for name in attrs)
        assert "url(" not in (attrs.get("style") or "")
    assert len(page.styles) == 1
    assert not re.search(r"url\(|@import|https?:", page.styles[0])


def test_only_our_own_scripts_may_run_and_no_request_is_allowed(hostile: Json, edit: WeightEdit) -> None:
    page = Page(render_report(hostile, edit))
    (policy,) = (attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    directives = dict(directive.strip().split(" ", 1) for directive in policy.split(";"))
    assert directives["default-src"] == "'none'"
    runnable = [content for attrs, content in page.scripts if attrs.get("type") != "application/json"]
    digests = {base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in runnable}
    assert set(directives["script-src"].split()) == {f"'sha256-{digest}'" for digest in digests}
    assert len(runnable) == 2
    assert "showSendToCloud: false" in runnable[1]  # plotly would offer to upload the plot


def test_the_embedded_heat_map_is_lambda(results: Json, edit: WeightEdit) -> None:
    heat = Page(render_report(results, edit)).embedded("figures")["heads"]["data"][0]
    for site, site_edit in edit.sites.items():
        if site.block == "attn":
            assert [row[site.layer] for row in heat["z"]] == site_edit.magnitude.tolist()


def test_every_plot_has_its_data_an_alternative_and_a_caption(results: Json, edit: WeightEdit) -> None:
    page = Page(render_report(results, edit))
    plots = [attrs for _, attrs in page.tags if "data-figure" in attrs]
    assert {attrs["data-figure"] for attrs in plots} == set(page.embedded("figures"))
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in plots)
    assert [tag for tag, _ in page.tags].count("figcaption") == len(plots) == 9
    assert set(page.embedded("themes")) == {"light", "dark"}


def test_tables_have_captions_and_ids_are_unique(results: Json, edit: WeightEdit) -> None:
    tags = Page(render_report(results, edit)).tags
    assert [tag for tag, _ in tags].count("table") == [tag for tag, _ in tags].count("caption")
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {(attrs["href"] or "")[1:] for tag, attrs in tags if tag == "a"}
    assert targets <= set(ids)


def with_values(results: Json, *values: tuple[list[bool], list[bool]]) -> Json:
    """The results with verdicts by item: base, steering and edit, each of the harmful and of the benign requests."""
    for entry, (harmful, benign) in zip(results["held_out"]["conditions"], values, strict=True):
        entry["values"] = {"harmful_refused": harmful, "benign_refused": benign}
    return results


def test_the_first_screen_answers_three_questions_by_paired_differences(results: Json, edit: WeightEdit) -> None:
    """By hand: 8 of 10 harmful requests more are refused, 4 more than under steering; one benign one more."""
    no, half = [False] * 10, [True] * 4 + [False] * 6
    with_values(results, (no, no), (half, no), ([True] * 8 + [False] * 2, [True] + [False] * 9))
    interval = metric_name("harmful_refused").change.interval(paired([True] * 8 + [False] * 2, no))
    page = Page(render_report(results, edit))
    text = page.text
    assert (
        "Did it work? yes +80.0 points Harmful requests refused: 12.5 % before, 50.0 % after the edit. 95 % "
        f"interval of the paired difference: {interval}, n = 10."
    ) in text
    assert "What did it cost? within its limits KL 0.125 nats per token" in text
    assert "Benign requests refused: 0.0 % before, 6.2 % after" in text
    assert "Is it ahead of steering? yes +40.0 points" in text
    assert "against steering 0.2, at KL 0.125 nats per token and 0.250 nats per token: not the same cost." in text
    assert verdicts(page) == ["good", "good", "good"]
    assert "at each of 4 sites. It changes 3 of 4 attention heads and 5 of 10 MLP neurons." in text


def test_colour_says_better_or_worse_and_not_which_arm(results: Json, edit: WeightEdit) -> None:
    """Benign requests that are refused now are no success: neither the answer nor the reply is marked as good."""
    no, all_ = [False] * 10, [True] * 10
    with_values(results, (no, no), (no, no), (no, all_))
    page = Page(render_report(results, edit))
    assert verdicts(page)[:2] == ["open", "bad"]
    assert "Did it work? no detectable change" in page.text
    assert "What did it cost? a detectable loss" in page.text
    results["chosen"]["limits"] = {"kl": 0.001}
    assert "What did it cost? too much" in Page(render_report(results, edit)).text
    results["held_out"]["conditions"][2]["outcomes"]["benign"] = [True, False]
    tags = re.findall(r'<span class="tag (\w*)">([a-z ]+)</span>', render_report(results, edit))
    assert ("good", "now refused") in tags  # harmful
    assert ("bad", "now refused") in tags  # benign
    assert ("good", "refused") in tags
    assert ("bad", "refused") in tags


def test_another_edit_beside_the_chosen_one_is_not_taken_for_it(results: Json, edit: WeightEdit) -> None:
    """As the paper's rule is in a demonstration: what changed is told of the chosen edit, and shown of it."""
    conditions = results["held_out"]["conditions"]
    other = json.loads(json.dumps(conditions[2])) | {"label": "the paper's rule", "parameters": {"rho_attn": 9.0}}
    other["outcomes"]["harmful"] = [False] * len(other["outcomes"]["harmful"])
    other["replies"]["harmful"] = ["of the other"] * len(other["replies"]["harmful"])
    without = reply_sets(read_results(results))
    conditions.insert(2, other)
    run = read_results(results)
    assert run.edited is not None
    assert run.edited.label != "the paper's rule"
    for name, exchanges in reply_sets(run).items():
        for with_it, alone in zip(exchanges, without[name], strict=True):
            assert [reply.text for reply in with_it.before_and_after] == [r.text for r in alone.before_and_after]
            assert (with_it.changed, with_it.flip, with_it.mark) == (alone.changed, alone.flip, alone.mark)
    page = render_report(results, edit)
    assert "<summary>1 more condition on held-out items</summary>" in page
    drawn = [trace["marker"]["symbol"] for trace in Page(page).embedded("figures")["held-out-kl"]["data"]]
    assert drawn == ["square", "diamond", "triangle-up", "diamond"]  # base, steering, the other, the edit


def test_what_is_wanted_of_each_set_is_what_the_behaviour_says(results: Json) -> None:
    run = read_results(results | {"attribute": "borderline_refused", "direction": -1,
                                  "costs": {"harmful_refused": "fall", "benign_refused": "rise"}})  # fmt: skip
    names = ("borderline_refused", "harmful_refused", "benign_refused")
    assert [run.wanted(name) for name in names] == [-1, 1, -1]
    of_others = read_results(results)
    assert [of_others.wanted(name) for name in ("harmful_refused", "benign_refused")] == [1, -1]


def test_verdicts_of_other_behaviours_are_not_called_refusals(results: Json) -> None:
    for condition in results["held_out"]["conditions"]:
        condition["metrics"]["harmful_shown"] = condition["metrics"].pop("harmful_refused")
    run = read_results(results | {"attribute": "harmful_shown", "direction": 1})
    words = {reply.outcome for exchange in reply_sets(run)["harmful"] for reply in exchange.replies}
    assert words <= {"shown", "not shown", "not scored", ""}
    assert "shown" in words


def test_three_replies_that_changed_come_first(results: Json, edit: WeightEdit) -> None:
    results["held_out"]["conditions"][2]["outcomes"]["benign"] = [True, False]
    page = Page(render_report(results, edit))
    assert [attrs.get("class") for _, attrs in page.tags].count("changed") == 2  # as many as there are
    first = page.text.index("Replies that changed")
    assert first < page.text.index("How do I one?") < page.text.index("Capital of France?") < page.text.index("metric")
    run = read_results(results)
    assert [e.prompt for e in first_replies(reply_sets(run))] == ["How do I one?", "Capital of France?"]


def test_replies_open_all_at_once(results: Json, edit: WeightEdit) -> None:
    page = Page(render_report(results, edit))
    assert [attrs["aria-expanded"] for tag, attrs in page.tags if tag == "button"] == ["false", "false"]  # one a set
    assert page.text.count("Expand all") == 2


def test_a_phone_has_room_for_the_edit_the_base_and_steering(results: Json, edit: WeightEdit) -> None:
    shown = read_results(results).shown
    assert [condition.kind for condition in shown] == ["edit", "base", "steering"]
    assert [metric.name for metric in metrics_of(shown)] == ["harmful_refused", "benign_refused", "nll_increase", "kl"]
    cells = re.findall(r'<td class="number">.*?</td>', render_report(results, edit), flags=re.DOTALL)
    text = " ".join(re.sub(r"<[^>]*>", " ", cells[0]).split())
    assert text == "50.0 % 43.8 to 62.5 % n = 20"


def test_a_null_estimate_is_not_scored_and_not_zero(results: Json, edit: WeightEdit) -> None:
    nothing = {"value": None, "low": None, "high": None, "n": 0, "unscored": 20}
    results["held_out"]["conditions"][2]["metrics"] = dict.fromkeys(("harmful_refused", "kl"), nothing)
    page = Page(render_report(results, edit))
    assert "Harmful requests refused: 12.5 % before, not scored after the edit." in page.text
    assert "Did it work? not to be told not scored" in page.text
    assert "KL not scored" in page.text
    names = [trace.get("name") for trace in page.embedded("figures")["held-out-kl"]["data"]]
    assert "edited, held-out" not in names
    assert "steered, held-out" in names


@pytest.mark.parametrize(
    ("sites", "said", "figure"),
    [
        ({"L0_mlp": [1.0]}, "The attention block is off in this edit: no head is changed.", "heads"),
        ({"L0_attn": [1.0]}, "The MLP block is off in this edit: no neuron is changed.", "neurons"),
    ],
)
def test_a_block_that_is_off_is_said_to_be_off(
    results: Json, make_edit: Callable[..., WeightEdit], sites: dict[str, list[float]], said: str, figure: str
) -> None:
    page = Page(render_report(results, make_edit(1, **sites)))
    assert said in page.text
    assert figure not in page.embedded("figures")
    assert "(that block is off)" in page.text


def test_an_edit_without_effect_is_said_to_be_one(results: Json, make_edit: Callable[..., WeightEdit]) -> None:
    text = Page(render_report(results, make_edit(2, L0_attn=[0.0, 0.0]))).text
    assert "The attention block is on, but no head is edited: every λ is 0." in text


def test_noise_and_mismatches_are_said_plainly(results: Json, edit: WeightEdit) -> None:
    page = render_report(results, edit)
    text = Page(page).text
    assert '<p class="warning">One of three is noise.</p>' in page  # once, as `extract` says it
    del results["diagnosis"]["sites"]["L2.attn"]
    assert "<p>One of three is noise.</p>" in render_report(results, edit)
    assert "adapter: 4 of 4 greedy replies identical." in text
    assert "checkpoint: 3 of 4 greedy replies identical: it does not behave like the edit that was measured." in text


def test_replies_are_tagged_for_the_filter(results: Json, edit: WeightEdit) -> None:
    page = Page(render_report(results, edit))
    tags = [attrs["data-tags"] for _, attrs in page.tags if "data-tags" in attrs]
    # harmful: now refused; the same answer. benign: changed but not scored; the same answer.
    assert tags == ["changed refused flipped", "", "changed", ""]
    values = [attrs.get("value") for _, attrs in page.tags if attrs.get("name") == "filter-1"]
    assert values == ["", "changed", "refused", "flipped"]
    for entry in results["held_out"]["conditions"]:
        assert all(text in page.shown for texts in entry["replies"].values() for text in texts)


def test_without_outcomes_no_reply_is_called_refused(results: Json, edit: WeightEdit) -> None:
    for entry in results["held_out"]["conditions"]:
        del entry["outcomes"]
    page = Page(render_report(results, edit))
    assert [attrs["data-tags"] for _, attrs in page.tags if "data-tags" in attrs] == ["changed", "", "changed", ""]
    assert [attrs.get("value") for _, attrs in page.tags if attrs.get("name") == "filter-1"] == ["", "changed"]
    assert "now refused" not in page.text


def test_provenance_is_complete(results: Json, edit: WeightEdit) -> None:
    text = Page(render_report(results, edit)).text
    for fact in ("f" * 64, "torch 2.9.1", "steer2edit demo --seed 3", "counts.train 8", 'phrases ["I cannot"]'):
        assert fact in text


def test_a_minimal_run_says_what_it_lacks(edit: WeightEdit) -> None:
    text = Page(
        render_report(
            {
                "schema_version": 1,
                "title": "t",
                "behaviour": "safety",
                "attribute": "harmful_refused",
                "direction": 1,
                "model": {"name": "m"},
            },
            edit,
        )
    ).text
    for absent in ("no held-out evaluation", "nothing to plot", "not diagnosed", "kept no replies"):
        assert absent in text


def test_the_same_input_gives_the_same_page(results: Json, edit: WeightEdit) -> None:
    before = copy.deepcopy(results)
    assert render_report(results, edit) == render_report(results, edit)
    assert results == before


def test_the_file_is_the_page(results: Json, edit: WeightEdit, tmp_path: Path) -> None:
    write_report(results, edit, tmp_path / "run" / "report.html")
    assert (tmp_path / "run" / "report.html").read_bytes() == render_report(results, edit).encode("utf-8")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["report.html"]


def test_an_existing_file_is_replaced_only_on_request(results: Json, edit: WeightEdit, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(ArtifactError, match="exists already"):
        write_report(results, edit, path)
    assert path.read_text() == "mine"
    write_report(results, edit, path, overwrite=True)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_an_interruption_leaves_the_old_file_and_nothing_else(
    results: Json, edit: WeightEdit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("mine")

    def interrupted(self: Path, *args: object, **kwargs: object) -> int:
        self.write_bytes(b"<!doctype")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report(results, edit, path, overwrite=True)
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


def test_malformed_results_write_nothing(results: Json, edit: WeightEdit, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_report({**results, "schema_version": 99}, edit, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rule", "meaning", "paper"),
    [("effect", "λ is what a component's edit adds", False), ("cosine", "g, from −1", True)],
)
def test_what_lambda_is_depends_on_the_rule(
    results: Json, edit: WeightEdit, rule: str, meaning: str, paper: bool
) -> None:
    made = replace(edit, metadata={**edit.metadata, "rules": {"importance": rule}})
    text = Page(render_report(results, made)).text
    assert meaning in text
    for words in ("has its own ρ", "not on one scale", "writes more strongly along the steering vector"):
        assert (words in text) is paper
