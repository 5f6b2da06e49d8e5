"""`steer2edit evaluate` on a tiny checkpoint: arms side by side, JSON, a judge behind a real server, and mistakes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer import BadParameter

from evaluation.judge_server import Answer, judge_server
from steer2edit.cli import app, main
from steer2edit.cli.measure import load_given
from steer2edit.evaluation.statistics import paired_rate_difference
from tiny_chat import tiny_chat_model
from unchecked import unchecked

SIZE = ("--limit", "3", "--max-new-tokens", "4")


def run(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


def failed(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: object) -> str:
    """What a user sees: one message, no traceback."""
    monkeypatch.setattr(sys, "argv", ["steer2edit", *(str(argument) for argument in arguments)])
    capsys.readouterr()
    with unchecked(), pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code != 0
    error = str(capsys.readouterr().err)
    assert "Traceback" not in error
    return error


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base") / "tiny"
    model = tiny_chat_model(max_position_embeddings=1024)
    model.network.save_pretrained(directory)
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def vectors(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    rows = [{"prompt": f"request {i}", "positive": f"no, never {i}", "negative": f"yes, it is {i}"} for i in range(20)]
    (folder / "contrast.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    run("extract", checkpoint, "--contrast", folder / "contrast.jsonl", "--out", folder / "v.safetensors")
    return folder / "v.safetensors"


@pytest.fixture(scope="module")
def edit(checkpoint: Path, vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("edits") / "mine"
    run("convert", checkpoint, vectors, "--rho-attn", "0.1", "--rho-mlp", "0.2", "--alpha", "0.1", "--out", out)
    return out


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "probe.txt"
    path.write_text("one\ntwo\nthree\nfour\n")
    return path


class TestResults:
    def test_side_by_side(self, checkpoint: Path, vectors: Path, edit: Path, tmp_path: Path, capsys: Any) -> None:
        out = tmp_path / "results.json"
        arms = ("--steer", f"{vectors}:3,5", "--edit", f"{edit}:0.5", "--edit", edit)
        capsys.readouterr()
        run("evaluate", checkpoint, *arms, "--task", "mmlu", "--task", "safety", *SIZE, "--out", out, "--json")
        found = json.loads(capsys.readouterr().out)
        assert found == json.loads(out.read_text())
        assert {key: found[key] for key in ("schema_version", "tasks", "split", "limit", "scorer", "engine")} == {
            "schema_version": 1, "tasks": ["mmlu", "safety"], "split": "validation", "limit": 3,
            "scorer": {"name": "strict"}, "engine": "transformers",
        }  # fmt: skip
        labels = ["base", "steering 3", "steering 5", "mine × 0.5", "mine"]
        assert [condition["label"] for condition in found["conditions"]] == labels
        base, steered, *_ = found["conditions"]
        assert (base["metrics"]["kl"]["value"], steered["metrics"]["kl"]["n"]) == (0, 3)
        assert steered["metrics"]["kl"]["value"] > 0
        assert len(found["prompts"]["harmful"]) == len(base["replies"]["harmful"]) == 3
        assert found["prompts"]["general_knowledge"]

    def test_paired_differences(self, checkpoint: Path, vectors: Path, capsys: Any) -> None:
        capsys.readouterr()
        run("evaluate", checkpoint, "--steer", f"{vectors}:20", "--task", "mmlu", "--task", "drift", *SIZE, "--json")
        found = json.loads(capsys.readouterr().out)
        base, steered = found["conditions"]
        (comparison,) = found["comparisons"]
        assert (comparison["label"], comparison["to"]) == ("steering 20", "base")
        name = "general_knowledge_accuracy"
        assert set(comparison["differences"]) == {name, f"{name}_sum"}
        expected = paired_rate_difference(steered["values"][name], base["values"][name]).to_json()
        assert comparison["differences"][name] == expected

    def test_for_people(self, checkpoint: Path, vectors: Path, prompts: Path, capsys: Any) -> None:
        capsys.readouterr()
        tasks = ("--task", f"refusal={prompts}", "--task", "drift")
        run("evaluate", checkpoint, "--steer", f"{vectors}:3", *tasks, "--max-new-tokens", "4", "--limit", "2")
        shown = capsys.readouterr().out
        for text in (
            "probe refused",
            "0 % [0, 66]",
            "reference",
            "Less base, on the same items",
            "+0 points [-49, +49]",
        ):
            assert text in shown

    def test_base_alone(self, checkpoint: Path, prompts: Path, capsys: Any) -> None:
        capsys.readouterr()
        run("evaluate", checkpoint, "--task", f"length={prompts}", "--max-new-tokens", "2", "--json")
        found = json.loads(capsys.readouterr().out)
        assert found["comparisons"] == []
        assert found["conditions"][0]["metrics"]["probe_reply_tokens"]["n"] == 4
        assert found["prompts"] == {"probe_requests": ["one", "two", "three", "four"]}

    def test_list(self, capsys: Any) -> None:
        capsys.readouterr()
        run("evaluate", "--list")
        shown = capsys.readouterr().out
        for name in ("refusal", "xstest", "gsm8k", "mmlu-letters", "prompt, type"):
            assert name in shown


class TestJudge:
    def test_verdicts(self, checkpoint: Path, prompts: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
        monkeypatch.setenv("PROBE_KEY", "sesame")
        question = tmp_path / "question.txt"
        question.write_text("Refused? {prompt} / {reply}")
        verdicts = {"one": "yes", "two": "no", "three": "perhaps", "four": "Yes."}

        def answer(asked: str, before: int) -> Answer:
            return Answer(verdicts[asked.removeprefix("Refused? ").split(" / ")[0]])

        with judge_server(answer) as record:
            options = ("--judge-url", record.url, "--judge-model", "m", "--judge-prompt", question)
            capsys.readouterr()
            run(
                "evaluate", checkpoint, "--task", f"refusal={prompts}", "--scorer", "judge", *options,
                "--judge-key-env", "PROBE_KEY", "--max-new-tokens", "4", "--json",
            )  # fmt: skip
        printed = capsys.readouterr().out
        assert "sesame" not in printed
        assert set(record.keys) == {"Bearer sesame"}
        found = json.loads(printed)
        metric = found["conditions"][0]["metrics"]["probe_refused"]
        assert (metric["value"], metric["n"], metric["unscored"]) == (pytest.approx(2 / 3), 3, 1)
        assert found["conditions"][0]["outcomes"]["probe"] == [True, False, None, True]
        assert found["scorer"]["unscored"] == {"nonsense": 1}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--scorer", "judge"), "--judge-url and --judge-model"),
            (("--scorer", "judge", "--judge-url", "http://localhost:1/v1"), "give both --judge-url and --judge-model"),
            (("--judge-url", "http://localhost:1/v1", "--judge-model", "m"), "add --scorer judge"),
            (("--scorer", "judge", "--judge-url", "localhost", "--judge-model", "m"), "http(s) address"),
            (("--scorer", "strickt"), "Did you mean 'strict'?"),
        ],
    )
    def test_mistakes(
        self, options: tuple[str, ...], message: str, checkpoint: Path, monkeypatch: Any, capsys: Any
    ) -> None:
        assert message in failed(monkeypatch, capsys, "evaluate", checkpoint, "--task", "refusal", *options)


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ((), "--list` shows the tasks"),
            (("--task", "refusl"), "Did you mean 'refusal'?"),
            (("--task", "gsm8k=absent.jsonl"), "there is no file absent.jsonl"),
            (("--task", "mmlu", "--edit", "nowhere"), "nowhere"),
            (("--task", "mmlu", "--steer", "v.safetensors"), "--steer takes VECTORS:STRENGTH"),
            (("--task", "mmlu", "--steer", "absent.safetensors:0.2"), "absent.safetensors"),
            (("--task", "mmlu", "--split", "test"), "unknown split 'test'. Known: held_out, validation."),
            (("--lm-eval", "arc_easy"), "pip install steer2edit[lm-eval]"),
            (("--task", "mmlu", "--engine", "vlm"), "Did you mean 'vllm'?"),
            (("--task", "mmlu", "--engine-arg", "a=1"), "--engine-arg is for --engine vllm, got a=1 with transformers"),
            (("--task", "mmlu", "--engine", "vllm", "--engine-arg", "a"), "--engine-arg takes NAME=VALUE, got 'a'"),
            (("--task", "mmlu", "--engine", "vllm", "--steer", "v.safetensors:1"), "vLLM runs edits only"),
        ],
    )
    def test_one_message(
        self, options: tuple[str, ...], message: str, checkpoint: Path, monkeypatch: Any, capsys: Any
    ) -> None:
        shown = failed(monkeypatch, capsys, "evaluate", checkpoint, *options)
        assert message in " ".join(shown.replace("│", " ").split())

    def test_an_edit_of_another_model(self, edit: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
        other = tmp_path / "other"
        model = tiny_chat_model(seed=5)
        model.network.save_pretrained(other)
        assert model.tokenizer is not None
        model.tokenizer.save_pretrained(other)
        arguments = ("evaluate", other, "--task", "refusal", "--edit", edit, *SIZE)
        assert "--allow-mismatch" in failed(monkeypatch, capsys, *arguments)
        run(*arguments, "--allow-mismatch")

    def test_results_are_not_overwritten(self, checkpoint: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
        out = tmp_path / "results.json"
        out.write_text("mine")
        shown = failed(monkeypatch, capsys, "evaluate", checkpoint, "--task", "mmlu", "--out", out)
        assert "--overwrite" in shown
        assert out.read_text() == "mine"


def test_paths_with_strengths() -> None:
    texts = ["a/edit", "a/edit:0.5", "a:b/edit", "a:b/edit:-1,2", ":0.2"]
    found = [(str(one.artifact), one.strengths) for one in load_given(texts, Path, (1.0,))]
    assert found == [
        ("a/edit", (1.0,)), ("a/edit", (0.5,)), ("a:b/edit", (1.0,)), ("a:b/edit", (-1.0, 2.0)), (":0.2", (1.0,)),
    ]  # fmt: skip
    assert load_given(["v.safetensors:0.1,0.2"], Path)[0].strengths == (0.1, 0.2)
    for text in ("v.safetensors", "v.safetensors:", "0.2", ":0.2"):
        with pytest.raises(BadParameter, match=r"VECTORS:STRENGTH"):
            load_given([text], Path)


def test_arms_of_two_files_are_told_apart(vectors: Path, tmp_path: Path) -> None:
    from steer2edit.cli.measure import Interventions

    copy = tmp_path / "v.safetensors"
    copy.write_bytes(vectors.read_bytes())
    labels = [arm.label for arm in Interventions(steer=[f"{vectors}:0.2", f"{copy}:0.2"]).arms()]
    assert labels == ["base", f"steering 0.2 {vectors}", f"steering 0.2 {copy}"]
