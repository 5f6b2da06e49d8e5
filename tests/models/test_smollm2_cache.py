"""Where the embedded model is put, and what is said where nothing can be."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from steer2edit.errors import ModelError
from steer2edit.models import smollm2
from steer2edit.models.model_path import checkpoint_directory


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package of the model, and no variable that names a place."""
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: spec)
    for name in ("STEER2EDIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, "home/.cache/steer2edit"),
        ({"XDG_CACHE_HOME": ""}, "home/.cache/steer2edit"),
        ({"XDG_CACHE_HOME": "{}/xdg"}, "xdg/steer2edit"),
        ({"XDG_CACHE_HOME": "{}/xdg", "STEER2EDIT_CACHE": ""}, "xdg/steer2edit"),
        ({"STEER2EDIT_CACHE": "~/own"}, "home/own"),
    ],
)
def test_an_empty_variable_is_not_set(
    variables: dict[str, str], place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    made: list[Path] = []
    monkeypatch.setattr(smollm2, "_convert", lambda source, target: made.append(target))
    smollm2.smollm2_checkpoint()
    assert [path.parent for path in made] == [tmp_path / place]


def test_no_place_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(ModelError, match=r"home/\.cache/.*: Not a directory\. Set STEER2EDIT_CACHE to a directory"):
        checkpoint_directory("smollm2")


def test_no_space_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(smollm2, "_convert", full)
    with pytest.raises(ModelError, match=r"No space left on device \(os error 28\)\. Set STEER2EDIT_CACHE"):
        checkpoint_directory("smollm2")
