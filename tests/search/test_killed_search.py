"""A search killed with SIGKILL at ten random moments ends with the same trials as one left alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from killed_search import KILLS
from tiny_search import tiny_model

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("killed_search.py")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folders `alone`, `killed` and `extended`, and what the script says of the kills."""
    folder = tmp_path_factory.mktemp("work")
    model = tiny_model()
    model.network.save_pretrained(folder / "checkpoint")
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(folder / "checkpoint")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder / "checkpoint"), str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_kills_land_at_different_stages(work: tuple[Path, dict[str, Any]]) -> None:
    kills = work[1]["kills"]
    assert len(kills) == KILLS
    assert len(set(kills)) >= 4
    assert {"generate", "score"} & set(kills)  # while the model runs
    assert any(kill.startswith(("write", "place")) for kill in kills)  # while something is kept


@pytest.mark.parametrize("folder", ["killed", "extended"])
def test_same_trials_as_one_left_alone(folder: str, work: tuple[Path, dict[str, Any]]) -> None:
    alone, other = work[0] / "alone", work[0] / folder
    names = sorted(path.name for path in (alone / "trials").iterdir())
    assert names == ["main-0000.json", "main-0001.json", "main-0002.json"]  # 8 and twice 4 trials, no scratch left
    assert sorted(path.name for path in (other / "trials").iterdir()) == names
    for name in names:  # parameters, values of every item, stopped reasons, replies
        assert (other / "trials" / name).read_bytes() == (alone / "trials" / name).read_bytes()
    assert (other / "steering.json").read_bytes() == (alone / "steering.json").read_bytes()
    for name in ("adapter_model.safetensors", "adapter_config.json", "steer2edit.safetensors"):
        assert (other / "edit" / name).read_bytes() == (alone / "edit" / name).read_bytes()
    assert undated(other) == undated(alone)
    assert not list(other.rglob("*.partial"))
    assert not list(other.rglob("*.replaced"))


def undated(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "edit" / "steer2edit.json").read_text())
    return {key: value for key, value in manifest.items() if key != "created"}


def test_same_held_out_figures(work: tuple[Path, dict[str, Any]]) -> None:
    alone, killed, extended = (
        json.loads((work[0] / folder / "held_out.json").read_text()) for folder in ("alone", "killed", "extended")
    )
    assert killed == alone
    assert len(alone) == 1  # looked at once
    assert extended.items() >= alone.items()  # the shorter search looked at its own front before


def test_extending_kept_the_first_generation(work: tuple[Path, dict[str, Any]]) -> None:
    assert work[1]["first"] == ["main-0000.json"]
