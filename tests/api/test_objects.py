"""Models, vectors, edits and results from Python: what they compute, how they show themselves, what they refuse."""

import copy
import inspect
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel, T5Config, T5ForConditionalGeneration

import steer2edit as s2e
from next_tokens import next_token_log_probabilities
from steer2edit.api import showing
from steer2edit.core import Site
from steer2edit.editing import merged
from tiny_chat import tiny_chat_model, tiny_tokenizer

PAIRS = [(f"request number {i}", f"no, never {i}", f"yes, here it is {i}") for i in range(20)]
PROMPT = [[5, 9, 40, 7]]


@pytest.fixture(scope="module")
def model() -> s2e.Model:
    made = tiny_chat_model(num_hidden_layers=2)
    return s2e.wrap(made.network, made.tokenizer, name="tiny")


@pytest.fixture(scope="module")
def vectors(model: s2e.Model) -> s2e.Vectors:
    return s2e.extract(model, PAIRS, effects=True)


@pytest.fixture(scope="module")
def edit(model: s2e.Model, vectors: s2e.Vectors) -> s2e.Edit:
    return s2e.convert(model, vectors, rho_attn=0.2, rho_mlp=0.9, alpha=0.1)


@pytest.fixture(scope="module")
def other(model: s2e.Model) -> s2e.Edit:
    turned = [(prompt, negative, positive + " again") for prompt, positive, negative in PAIRS]
    return s2e.convert(model, s2e.extract(model, turned), rho_mlp=0.5, alpha=0.0, force=True)


def test_pairs_rows_and_a_file_make_the_same_vectors(model: s2e.Model, vectors: s2e.Vectors, tmp_path: Path) -> None:
    names = ("prompt", "positive", "negative")
    rows = [dict(zip(names, pair, strict=True)) for pair in PAIRS]
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join(["prompt;positive;negative", *(";".join(pair) for pair in PAIRS)]))
    for source in (rows, str(table)):
        found = s2e.extract(model, source)
        assert all(torch.equal(found.sites[s].steering_vector, m.steering_vector) for s, m in vectors.sites.items())


def test_the_recommended_edit_where_there_are_effects_and_the_papers_with_a_budget(
    model: s2e.Model, vectors: s2e.Vectors, edit: s2e.Edit
) -> None:
    recommended = s2e.convert(model, vectors, force=True)
    assert recommended.metadata["rules"]["importance"] == "effect"
    asked = vectors.metadata["effects"]["drift"]  # what the steps ended at
    assert recommended.metadata["drift"]["kl"] == pytest.approx(asked, rel=0.05)
    assert asked < 0.03
    assert edit.metadata["rules"]["importance"] == "cosine"
    with pytest.raises(s2e.Steer2EditError, match=r"no measured effects, and the paper.s rule needs a budget"):
        s2e.convert(model, s2e.extract(model, PAIRS))


def test_the_sum_of_edits_is_the_sum_of_their_matrices(model: s2e.Model, edit: s2e.Edit, other: s2e.Edit) -> None:
    both = 0.5 * edit + other * 2 + edit
    with merged(model, edit, 3 * 1.5), merged(model, other, 6.0):  # ΔW = 1.5 ΔW₁ + 2 ΔW₂, at strength 3
        dense = next_token_log_probabilities(model, PROMPT)
    before = next_token_log_probabilities(model, PROMPT)
    with both.on(model, 3):
        found = next_token_log_probabilities(model, PROMPT)
    assert (dense - before).abs().max() > 0.01
    assert torch.allclose(found, dense, atol=1e-5)
    assert torch.equal(next_token_log_probabilities(model, PROMPT), before)
    with edit.on(model, 2), (edit * -2).on(model):
        assert torch.allclose(next_token_log_probabilities(model, PROMPT), before, atol=1e-5)


def test_a_sum_is_saved_as_one_adapter(model: s2e.Model, edit: s2e.Edit, other: s2e.Edit, tmp_path: Path) -> None:
    made = tiny_chat_model(num_hidden_layers=2)
    made.network.save_pretrained(tmp_path / "base")
    assert made.tokenizer is not None
    made.tokenizer.save_pretrained(tmp_path / "base")
    (0.5 * edit + other).save(tmp_path / "both")
    found = s2e.load_edit(tmp_path / "both")
    assert isinstance(found, s2e.CombinedEdit)
    with found.on(model):
        again = next_token_log_probabilities(model, PROMPT)
    with (0.5 * edit + other).on(model):
        assert torch.equal(next_token_log_probabilities(model, PROMPT), again)
    with pytest.raises(s2e.Steer2EditError, match="cancel each other"):
        (edit + -1 * edit).save(tmp_path / "nothing")


def test_edits_of_different_models_are_not_added(edit: s2e.Edit) -> None:
    stranger = tiny_chat_model(seed=3, num_hidden_layers=2)
    foreign = s2e.convert(stranger, s2e.extract(stranger, PAIRS), rho_mlp=0.5, force=True)
    with pytest.raises(s2e.Steer2EditError, match="edits of different weights cannot be added up"):
        _ = edit + foreign
    with pytest.raises(s2e.Steer2EditError, match="other weights"), foreign.on(s2e.Model.of(tiny_chat_model())):
        pass


def test_evaluate_compares_under_names(model: s2e.Model, vectors: s2e.Vectors, edit: s2e.Edit) -> None:
    found = s2e.evaluate(model, [vectors @ 2.0, edit, edit], "safety", limit=1, max_new_tokens=3)
    assert [c.label for c in found.conditions] == ["base", "steering 2", "edit", "edit #2"]
    assert found.conditions[2].metrics == found.conditions[3].metrics
    assert "harmful_refused" in repr(found.conditions[2])
    assert "replies" not in repr(found.conditions[2])  # of a real run they are pages
    assert "no interval" in repr(found)  # of one item there is none
    named = s2e.evaluate(model, {"<b>mine</b>": edit @ 0.5}, ["drift"], limit=2)
    assert [c.label for c in named.conditions] == ["base", "<b>mine</b>"]
    with edit.on(model, 0.5):
        pass
    assert named.conditions[1].metrics["kl"].value > 0
    page = found._repr_html_() + named._repr_html_()
    assert "&lt;b&gt;mine" in page
    assert "<b>mine" not in page


def test_pairs_in_memory_are_measured_too(model: s2e.Model, vectors: s2e.Vectors) -> None:
    found = s2e.evaluate(model, vectors @ 3.0, PAIRS, split="held_out")
    margin = next(name for name in found.conditions[0].metrics if name.endswith("margin"))
    assert found.conditions[0].metrics[margin].n == 4  # a fifth of twenty
    assert found.conditions[1].metrics[margin].value > found.conditions[0].metrics[margin].value
    assert "plotly" in found._repr_html_()  # the trade-off


@pytest.mark.parametrize("given", ["vectors", "text"])
def test_what_cannot_be_compared(given: str, model: s2e.Model, vectors: s2e.Vectors) -> None:
    wrong: Any = vectors if given == "vectors" else "edit"
    with pytest.raises(s2e.Steer2EditError, match=r"vectors @ 0\.2"):
        s2e.evaluate(model, [wrong], "safety")


def test_objects_show_themselves_in_a_few_lines(model: s2e.Model, vectors: s2e.Vectors, edit: s2e.Edit) -> None:
    assert repr(model).startswith("Model tiny (llama, 2 layers, float32 on cpu)")
    assert "pairs in memory, 12 positive and 12 negative responses" in repr(vectors)
    strongest = edit.top_components(1)[0]
    assert f"Strongest: {strongest[0]} {strongest[1]:+.2g}" in repr(edit)
    assert "0.5 times the edit that was made" in repr(0.5 * edit)
    assert [" 0.5 times" in line for line in repr(0.5 * edit + edit).splitlines()] == [False, True, False]
    assert showing.counted({"attn": 1, "mlp": 2_000}) == "1 attention head and 2,000 neurons"
    for one in (model, vectors, edit, edit + edit):
        assert repr(one).count("\n") < 5
        page = one._repr_html_()
        assert "<script>" in page or "plotly" in page or one is model


def test_hostile_text_stays_text(vectors: s2e.Vectors) -> None:
    hostile = "</script><img src=x onerror=alert(1)>\x1b[31m"
    made = s2e.Vectors(
        vectors.sites, {"contrast": {"name": hostile}}, {**(vectors.diagnosis or {}), "summary": hostile}
    )
    page = made._repr_html_()
    assert "<img" not in page
    assert "\x1b" not in page


def test_one_pair_is_not_judged(model: s2e.Model) -> None:
    assert "could not be judged" in repr(s2e.extract(model, PAIRS[:1]))
    with pytest.raises(s2e.Steer2EditError, match="at least 6 training responses of each class"):
        s2e.extract(model, PAIRS[:1], effects=True)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", "b", "c"), ("d", " ", "f")], "pair 2: positive must be text and not empty, got ' '"),
        ([("a", "b")], r"pair 1 must be \(prompt, positive, negative\), or a row by column, got \('a', 'b'\)"),
        ([{"prompt": "a", "positive": "b"}], "pair 1: the row needs text in both"),
        ([], "there are no pairs"),
        ("safty", "Did you mean 'safety'"),
    ],
)
def test_pairs_that_are_none(pairs: Any, message: str, model: s2e.Model) -> None:
    with pytest.raises(s2e.Steer2EditError, match=message):
        s2e.extract(model, pairs)


def test_what_is_no_causal_language_model() -> None:
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    headless = LlamaModel(LlamaConfig(**sizes, vocab_size=len(tokenizer)))
    two_part = T5ForConditionalGeneration(
        T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, vocab_size=40)
    )
    network = tiny_chat_model().network
    wrongs = {"builtins.str": "smollm2", "LlamaModel": headless, "T5ForCond": two_part}
    for message, wrong in wrongs.items():
        with pytest.raises(s2e.Steer2EditError, match=message):
            s2e.wrap(wrong, tokenizer)
    with pytest.raises(s2e.Steer2EditError, match="needs the model's tokenizer"):
        s2e.wrap(network, None)


def test_keywords_are_those_of_the_command_line(model: s2e.Model, vectors: s2e.Vectors) -> None:
    parameters = inspect.signature(s2e.convert).parameters
    assert parameters["force"].default is False
    assert {"rho_attn", "alpha", "kl", "force"} <= set(parameters)
    assert "Budget rho > 0 of attention heads" in str(s2e.convert.__doc__)
    with pytest.raises(s2e.Steer2EditError, match=r"convert has no keyword 'rho'\. Did you mean"):
        s2e.convert(model, vectors, rho=0.2)
    with pytest.raises(s2e.Steer2EditError, match="temperature must be >= 0"):
        s2e.extract(model, PAIRS, temperature=-1)


def test_without_pandas(edit: s2e.Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(s2e.Steer2EditError, match="pip install pandas"):
        edit.to_pandas()


def test_rows_for_pandas(edit: s2e.Edit, vectors: s2e.Vectors) -> None:
    pytest.importorskip("pandas")
    rows = edit.to_pandas()
    assert len(rows) == sum(int(own.magnitude.count_nonzero()) for own in edit.sites.values())
    assert list((edit + edit).to_pandas()["edit"]) == [1] * len(rows) + [2] * len(rows)
    assert rows["magnitude"].abs().max() == abs(edit.top_components(1)[0][1])
    assert list(vectors.to_pandas()["site"]) == [str(site) for site in vectors.sites]


def test_rooms_can_be_called_and_stay_modules() -> None:
    import steer2edit.search
    import steer2edit.stress

    assert inspect.ismodule(steer2edit.search)
    assert inspect.ismodule(steer2edit.stress)
    assert "trials" in inspect.signature(s2e.search).parameters
    assert "only" in inspect.signature(s2e.stress).parameters


def test_wrong_kinds_of_values_are_refused_by_name() -> None:
    model = s2e.Model.of(tiny_chat_model())
    for call, message in (
        (lambda: s2e.extract(model, "safety", span=3), "span must be text, got 3"),
        (lambda: s2e.extract(model, "safety", limit="3"), "limit must be an integer, got '3'"),
        (lambda: s2e.convert(model, {}, rho_attn="0.2"), "rho_attn must be a number, got '0.2'"),
        (lambda: s2e.convert(model, {}, rho_attn=0.2, limit=0), "limit must be >= 1, got 0"),
        (lambda: s2e.evaluate(model, [], []), "there are no pairs"),
        (lambda: s2e.evaluate(model, [], [("a", "b")]), r"pair 1 must be \(prompt, positive, negative\)"),
        (lambda: model.reply("Hi", temperature=float("nan")), "temperature must be >= 0"),
    ):
        with pytest.raises(s2e.Steer2EditError, match=message):
            call()


def test_one_text_is_no_list_of_prompts_and_strengths_are_finite(
    model: s2e.Model, vectors: s2e.Vectors, edit: s2e.Edit
) -> None:
    with pytest.raises(s2e.Steer2EditError, match="replies takes a list of prompts, got the text 'hi'"):
        model.replies("hi")
    both = edit + edit
    for strength in (float("nan"), float("inf"), "x", "0.5", None, edit):
        for use in (
            lambda wrong: vectors @ wrong,
            lambda wrong: edit @ wrong,
            lambda wrong: both @ wrong,
            lambda wrong: wrong * edit,
            lambda wrong: both * wrong,
            lambda wrong: vectors.on(model, wrong),
            lambda wrong: edit.on(model, wrong),
            lambda wrong: both.on(model, wrong),
        ):
            with pytest.raises(s2e.Steer2EditError, match="strength must be a finite number, got"):
                use(strength)


def test_what_is_given_in_the_wrong_place_is_told_by_name(
    model: s2e.Model, vectors: s2e.Vectors, edit: s2e.Edit
) -> None:
    wrong: list[tuple[Any, str]] = [
        (
            lambda: s2e.convert(model, "v.safetensors"),
            "takes vectors as SteeringVectors, got 'v.safetensors': load",
        ),
        (lambda: s2e.preview(model, vectors, edit + edit), "preview takes edit as WeightEdit, got CombinedEdit"),
        (lambda: s2e.refit(model, "edit"), "refit takes edit as WeightEdit, got 'edit': load it first"),
        (lambda: s2e.apply("smollm2", "edit", "out"), "apply takes edit as WeightEdit or CombinedEdit, got 'edit'"),
        (lambda: s2e.stress("smollm2", edit), "stress takes model as LanguageModel, got 'smollm2'"),
        (lambda: s2e.audit("smollm2", "edited", "edit"), "audit takes edit as WeightEdit, got 'edit'"),
    ]
    for call, message in wrong:
        with pytest.raises(s2e.Steer2EditError, match=message):
            call()


def test_copies_and_pickles_are_what_they_are_of(vectors: s2e.Vectors, edit: s2e.Edit, other: s2e.Edit) -> None:
    for copied in (copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))):  # noqa: S301
        assert copied(vectors).digest() == vectors.digest()
        assert copied(edit).digest() == edit.digest()
        assert [part.digest() for part in copied(edit + other).parts] == [edit.digest(), other.digest()]
        with pytest.raises(TypeError, match="does not support item assignment"):
            copied(edit).sites[Site(0, "mlp")] = edit


def test_edits_are_told_apart_by_which_they_are(edit: s2e.Edit, other: s2e.Edit) -> None:
    assert [edit == edit, edit == other, edit == 1.0 * edit] == [True, False, False]
    assert len({edit, other}) == 2


def test_only_a_model_runs_with_an_edit_and_a_strength_is_no_longer_than_a_float(
    model: s2e.Model, vectors: s2e.Vectors, edit: s2e.Edit, other: s2e.Edit
) -> None:
    for artifact in (vectors, edit, edit + other):
        for bad, got in ((None, "NoneType"), ("m", "'m': load it first"), (edit, "Edit")):
            with pytest.raises(s2e.Steer2EditError, match=f"used on a Model, got {got}"):
                artifact.on(bad, 1.0)
        with pytest.raises(s2e.Steer2EditError, match="strength must be a finite number, got 1000"):
            artifact.on(model, 10**400)
