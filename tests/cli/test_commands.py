"""The command line on a tiny checkpoint: every command, JSON, and what a mistake looks like to the user."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import steer2edit
from steer2edit.cli import app, main
from steer2edit.models import load_model
from tiny_chat import tiny_chat_model
from unchecked import unchecked


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base") / "tiny"
    model = tiny_chat_model()
    model.network.save_pretrained(directory)
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def contrast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "contrast.jsonl"
    rows = [
        {"prompt": f"request number {i}", "positive": f"no, never {i}", "negative": f"yes, here it is {i}"}
        for i in range(20)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture(scope="session")
def vectors(checkpoint: Path, contrast: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vectors") / "v.safetensors"
    run("extract", checkpoint, "--contrast", contrast, "--out", out)
    return out


@pytest.fixture(scope="session")
def edit(checkpoint: Path, vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("edits") / "edit"
    run("convert", checkpoint, vectors, "--rho-attn", "0.2", "--rho-mlp", "0.9", "--alpha", "0.1", "--out", out)
    return out


def run(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["steer2edit", *(str(argument) for argument in arguments)])
    with unchecked(), pytest.raises(SystemExit) as exit_info:
        main()
    code = exit_info.value.code
    return 0 if code is None else int(code)


def printed_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Stdout must be one JSON object and nothing else."""
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


def test_extract_prints_diagnosis(checkpoint: Path, contrast: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "v.safetensors"
    capsys.readouterr()
    run("extract", checkpoint, "--contrast", contrast, "--out", out, "--json")
    printed = printed_json(capsys)
    assert printed["diagnosis"]["counts"]["train"] == {"positive": 12, "negative": 12}
    assert set(printed["diagnosis"]["sites"]) >= {"L0.attn", "L0.mlp"}
    assert "L0.attn.output_positive" in load_file(out)
    (one := tmp_path / "one.jsonl").write_text(contrast.read_text().split("\n")[0])
    run("extract", checkpoint, "--contrast", one, "--out", tmp_path / "one.safetensors")
    (line,) = (line for line in capsys.readouterr().out.split("\n") if line.startswith("L0.mlp"))
    assert line.split()[2:] == ["-", "-"]  # nothing was held out: no AUROC, and no interval of it


def test_steer_at_zero_is_the_base(checkpoint: Path, vectors: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "results.json"
    size = ("--limit", "3", "--max-new-tokens", "4")
    run("steer", checkpoint, vectors, "--evaluate", "safety", "--strength", "0,2", *size, "--out", out, "--json")
    base, steered = printed_json(capsys)["conditions"]
    assert base["kind"] == "base"
    assert base["metrics"]["kl"]["value"] == 0
    assert steered["metrics"]["kl"]["value"] > 0
    assert steered["metrics"]["kl"]["n"] == 3
    assert json.loads(out.read_text())["conditions"][1]["replies"]["harmful"]


def test_apply_equals_the_hand_edit(checkpoint: Path, edit: Path, tmp_path: Path) -> None:
    out = tmp_path / "edited"
    run("apply", checkpoint, edit, "--out", out, "--strength", "0.5")
    before, after = load_file(checkpoint / "model.safetensors"), load_file(out / "model.safetensors")
    factors = load_file(edit / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.o_proj"
    change = factors[f"base_model.model.{name}.lora_B.weight"] @ factors[f"base_model.model.{name}.lora_A.weight"]
    assert torch.equal(after[f"{name}.weight"], before[f"{name}.weight"] + 0.5 * change)
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert load_model(str(out)).sites


def test_inspect_counts_every_component(edit: Path, capsys: Any) -> None:
    run("inspect", edit, "--top", "3", "--json")
    printed = printed_json(capsys)
    components = load_file(edit / "steer2edit.safetensors")
    nonzero = sum(int((t != 0).sum()) for key, t in components.items() if key.endswith("magnitude"))
    assert printed["components"] == nonzero > 0
    assert len(printed["top"]) == 3
    assert abs(printed["top"][0]["magnitude"]) >= abs(printed["top"][1]["magnitude"])
    run("inspect", edit)
    shown = capsys.readouterr().out
    assert printed["top"][0]["component"] in shown
    assert "λ by layer" in shown


def test_vectors_made_elsewhere_get_input_means_in_the_same_call(
    checkpoint: Path, contrast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    sites = load_model(str(checkpoint)).sites
    own = tmp_path / "own.safetensors"
    save_file({str(site): torch.randn(p.shape[0]) for site, p in sites.items()}, own)
    common = ("convert", checkpoint, own, "--rho-attn", "0.2")
    assert run_main(monkeypatch, *common, "--out", tmp_path / "without") == 1
    assert "--contrast" in capsys.readouterr().err
    run(*common, "--contrast", contrast, "--out", tmp_path / "with")
    assert (tmp_path / "with" / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rho-attn", "0.2", "--alpha", "1"), "alpha must be in [0, 1), got 1.0"),
        (("--rho-attn", "0.2", "--alpha", "-0.1"), "alpha must be in [0, 1), got -0.1"),
        (("--rho-attn", "0"), "rho_attn must be > 0, got 0.0"),
        (("--rho-mlp", "-1"), "rho_mlp must be > 0, got -1.0"),
        ((), "have no measured effects, and the paper's rule needs a budget: extract with --effects"),
        (("--rho-attn", "0.2", "--importance", "cosin"), "Did you mean 'cosine'?"),
    ],
)
def test_bad_settings_are_one_message(
    arguments: tuple[str, ...], message: str, checkpoint: Path, vectors: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: Any,
) -> None:  # fmt: skip
    out = tmp_path / "edit"
    assert run_main(monkeypatch, "convert", checkpoint, vectors, *arguments, "--out", out) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not out.exists()


def test_bad_files_are_one_message(checkpoint: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"not a tensor file")
    out = tmp_path / "out"
    for arguments, message in (
        (("steer", checkpoint, garbage), "garbage.safetensors"),
        (("steer", checkpoint, tmp_path / "absent.safetensors"), "absent.safetensors"),
        (("extract", tmp_path / "nowhere", "--contrast", "safety", "--out", out), "nowhere"),
        (("extract", "smolm2", "--contrast", "safety", "--out", out), "Did you mean 'smollm2'?"),
        (("extract", checkpoint, "--contrast", "safty", "--out", out), "Did you mean 'safety'?"),
        (("inspect", tmp_path), "steer2edit.json"),
    ):
        assert run_main(monkeypatch, *arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert not out.exists()


def test_output_is_never_overwritten_silently(
    checkpoint: Path, vectors: Path, edit: Path, monkeypatch: Any, capsys: Any
) -> None:
    before = (edit / "adapter_model.safetensors").read_bytes()
    common = ("convert", checkpoint, vectors, "--rho-attn", "0.3", "--out", edit)
    assert run_main(monkeypatch, *common) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (edit / "adapter_model.safetensors").read_bytes() == before


def test_edit_of_another_model_is_refused(edit: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    other = tmp_path / "other"
    model = tiny_chat_model(seed=5)
    model.network.save_pretrained(other)
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(other)
    assert run_main(monkeypatch, "apply", other, edit, "--out", tmp_path / "out") == 1
    assert "--allow-mismatch" in capsys.readouterr().err
    run("apply", other, edit, "--out", tmp_path / "out", "--allow-mismatch")
    assert (tmp_path / "out" / "config.json").is_file()


def test_vectors_that_lack_layers_are_refused(
    checkpoint: Path, vectors: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    some = {k: t for k, t in load_file(vectors).items() if not k.startswith("L1.")}
    from safetensors import safe_open

    with safe_open(vectors, "pt") as opened:
        save_file(some, tmp_path / "some.safetensors", opened.metadata())
    common = ("convert", checkpoint, tmp_path / "some.safetensors", "--rho-attn", "0.2", "--out", tmp_path / "edit")
    assert run_main(monkeypatch, *common) == 1
    assert "L1.attn" in capsys.readouterr().err
    run(*common, "--allow-missing")


@pytest.mark.parametrize(
    ("step", "arguments", "message"),
    [
        ("steer2edit.recipes.run.make_edit", ("run", "safety"), "What was found is in {out}: the same command goes on"),
        ("steer2edit.recipes.making.extract", ("extract", "--contrast", "safety"), "Nothing was left half-written"),
    ],
)
def test_an_interrupted_command_says_how_to_go_on(
    step: str, arguments: tuple[str, ...], message: str, checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: Any,
) -> None:  # fmt: skip
    """Ctrl+C while a command is at work: no traceback, and no scratch beside its output."""
    out = tmp_path / "out.safetensors"
    monkeypatch.setattr(step, lambda *_, **__: signal.raise_signal(signal.SIGINT))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        command, *rest = arguments
        size = ("--limit", "6", "--max-new-tokens", "3")
        assert run_main(monkeypatch, command, checkpoint, *rest, *size, "--out", out) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    error = capsys.readouterr().err
    assert message.format(out=out) in error
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == (["out.safetensors"] if command == "run" else [])


def test_version(capsys: Any) -> None:
    app(["--version"], standalone_mode=False)
    assert capsys.readouterr().out == f"steer2edit {steer2edit.__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['steer2edit', '--help']\ntry:\n    from steer2edit.cli import main; main()\nexcept SystemExit:\n    pass\nassert not {'torch', 'transformers', 'scipy', 'plotly', 'pydantic'} & set(sys.modules), sorted(sys.modules)"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "extract" in done.stdout


def test_control_characters_of_a_reply_do_not_reach_the_terminal(capsys: Any) -> None:
    from steer2edit.cli.console import say

    say("before \x1b[31mred\x07 after\x9b")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\x9b" not in shown
    assert "⟨U+001B⟩[31mred" in shown
