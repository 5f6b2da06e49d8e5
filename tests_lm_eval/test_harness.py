"""The lm-evaluation-harness on local task files, offline: its figures are those of plain forward passes on the same
items, for the base and for an edit that is merged into the weights."""

import json
import statistics
from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from oracle import TASKS, choices_right, continuation, rows

from editing.edit_models import hook_count, random_vectors, weight_bytes
from steer2edit.core import Editing, Steering, WeightEdit
from steer2edit.editing import convert, merged
from steer2edit.errors import DataError
from steer2edit.evaluation.harness import harness_results
from steer2edit.evaluation.statistics import rate
from steer2edit.method.hyperparameters import Hyperparameters
from steer2edit.models import LanguageModel, load_model
from steered import steered
from tiny_chat import tiny_chat_model, tiny_tokenizer

CHOICES, TEXT = "steer2edit_capitals", "steer2edit_sequences"
FILES = [str(TASKS / f"{name}.yaml") for name in ("capitals", "sequences")]


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    return tiny_chat_model()


@pytest.fixture(scope="module")
def edit(tiny: LanguageModel) -> WeightEdit:
    return convert(tiny, random_vectors(tiny), Hyperparameters(0.1, 0.1, 0.1))


class TestTinyModel:
    def test_multiple_choice(self, tiny: LanguageModel, edit: WeightEdit) -> None:
        vectors = random_vectors(tiny)
        interventions = [None, Editing(edit), Steering(vectors, 0.5), None]
        before = weight_bytes(tiny.network)
        found = harness_results(tiny, FILES[:1], interventions)

        expected = [choices_right(tiny)]
        with merged(tiny, edit):
            expected.append(choices_right(tiny))
        with steered(tiny, vectors, 0.5):
            expected.append(choices_right(tiny))
        expected.append(expected[0])
        assert expected[0] != expected[1]  # else the comparison shows nothing
        assert expected[0] != expected[2]
        for metrics, (plain, by_length) in zip(found, expected, strict=True):
            accuracy, normalised = metrics[f"{CHOICES}.acc"], metrics[f"{CHOICES}.acc_norm"]
            assert list(metrics) == [f"{CHOICES}.acc", f"{CHOICES}.acc_norm"]
            assert list(accuracy.values) == plain
            assert list(normalised.values) == by_length
            assert accuracy.estimate == rate(plain)
            assert accuracy.reported == pytest.approx(sum(plain) / 12)
            assert accuracy.reported_error == pytest.approx(statistics.stdev(plain) / 12**0.5)
        assert weight_bytes(tiny.network) == before
        assert hook_count(tiny.network) == 0

    def test_generation(self, tiny: LanguageModel, edit: WeightEdit, tmp_path: Path) -> None:
        contexts = [row["sequence"] for row in rows("sequences")]
        base = [continuation(tiny, context, 8) for context in contexts]
        with merged(tiny, edit):
            edited = [continuation(tiny, context, 8) for context in contexts]
        right = [base[0], base[1], base[2], edited[3], edited[4], "nothing", "nothing", "nothing"]
        data = tmp_path / "data.jsonl"
        data.write_text(
            "".join(json.dumps({"sequence": c, "next": n}) + "\n" for c, n in zip(contexts, right, strict=True))
        )
        task = (TASKS / "sequences.yaml").read_text().replace("tasks/sequences.jsonl", str(data))
        (tmp_path / "own.yaml").write_text(task)

        found = harness_results(tiny, [str(tmp_path / "own.yaml")], [None, Editing(edit)])
        expected = [[text == wanted for text, wanted in zip(texts, right, strict=True)] for texts in (base, edited)]
        assert expected[0] != expected[1]
        assert [list(metrics[f"{TEXT}.exact_match"].values) for metrics in found] == expected

    def test_limit_and_a_file_as_task(self, tiny: LanguageModel) -> None:
        (metrics,) = harness_results(tiny, ["tasks/capitals.yaml"], limit=5)
        assert list(metrics[f"{CHOICES}.acc"].values) == choices_right(tiny)[0][:5]
        assert metrics[f"{CHOICES}.acc"].estimate.n == 5

    def test_a_token_without_a_row(self) -> None:
        tokenizer = tiny_tokenizer()
        rows = len(tokenizer)
        tokenizer.add_tokens(["capital"])
        model = tiny_chat_model(tokenizer=tokenizer, vocab_size=rows)
        with pytest.raises(DataError, match=f"'capital' .* is token {rows}, and the embedding"):
            harness_results(model, ["tasks/capitals.yaml"])

    def test_as_the_harness_itself(self, tiny: LanguageModel) -> None:
        """The figures of the harness's own entry point."""
        theirs = simple_evaluate(HFLM(tiny.network, tokenizer=tiny.tokenizer), tasks=["tasks/capitals.yaml"])
        (ours,) = harness_results(tiny, ["tasks/capitals.yaml"])
        accuracy = ours[f"{CHOICES}.acc"]
        assert list(accuracy.values) == [bool(sample["acc"]) for sample in theirs["samples"][CHOICES]]
        assert accuracy.reported == theirs["results"][CHOICES]["acc,none"]
        assert accuracy.reported_error == theirs["results"][CHOICES]["acc_stderr,none"]

    def test_the_harness_is_quiet(self, tiny: LanguageModel, caplog: pytest.LogCaptureFixture) -> None:
        harness_results(tiny, ["tasks/capitals.yaml"], limit=1)
        assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []

    def test_a_tokenizer_without_padding_token_is_left_alone(self) -> None:
        model = tiny_chat_model(tokenizer=tiny_tokenizer(pad=False))
        (metrics,) = harness_results(model, ["tasks/capitals.yaml"])
        assert model.tokenizer.pad_token is None
        assert list(metrics[f"{CHOICES}.acc"].values) == choices_right(model)[0]

    def test_the_callers_random_numbers_are_left_alone(self, tiny: LanguageModel) -> None:
        state = torch.get_rng_state()
        harness_results(tiny, ["tasks/capitals.yaml"], limit=1)
        assert torch.equal(state, torch.get_rng_state())


class TestBadInput:
    def test_unknown_task(self, tiny: LanguageModel) -> None:
        with pytest.raises(DataError, match=r"no task 'hellaswagg'\. Did you mean 'hellaswag'"):
            harness_results(tiny, ["hellaswagg"])

    def test_data_that_cannot_be_had(self, tiny: LanguageModel, tmp_path: Path) -> None:
        task = (TASKS / "sequences.yaml").read_text().replace("tasks/sequences.jsonl", "nowhere.jsonl")
        (tmp_path / "own.yaml").write_text(task)
        with pytest.raises(DataError, match=r"cannot load .*own\.yaml: FileNotFoundError.*nowhere\.jsonl"):
            harness_results(tiny, [str(tmp_path / "own.yaml")])

    def test_tasks_that_run_code(self, tiny: LanguageModel, tmp_path: Path) -> None:
        (tmp_path / "own.yaml").write_text((TASKS / "sequences.yaml").read_text() + "unsafe_code: true\n")
        with pytest.raises(DataError, match=rf"{TEXT}' runs code that the model writes.*sandbox"):
            harness_results(tiny, [str(tmp_path / "own.yaml")])


@pytest.mark.slow
def test_smollm2() -> None:
    """The real model, float32, knows more of capitals and sequences than chance does."""
    model = load_model("smollm2", dtype="float32", device="cpu")
    (metrics,) = harness_results(model, FILES)
    plain, by_length = choices_right(model)
    right = [continuation(model, row["sequence"], 8) == row["next"] for row in rows("sequences")]
    assert list(metrics[f"{CHOICES}.acc"].values) == plain
    assert list(metrics[f"{CHOICES}.acc_norm"].values) == by_length
    assert list(metrics[f"{TEXT}.exact_match"].values) == right
    assert sum(plain) > 3  # of 12 questions with four choices each
    assert sum(right) > 0
