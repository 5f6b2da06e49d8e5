"""The playground as a folder for a Hugging Face Space: app, requirements, card, what is shown, and this package."""

import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import steer2edit
from steer2edit.artifacts import atomic_directory
from steer2edit.artifacts.cards import base_on_the_hub
from steer2edit.errors import InvalidValueError
from steer2edit.models import LanguageModel
from steer2edit.models.model_path import embedded_file


def write_space(model: LanguageModel, artifacts: Sequence[Path], directory: Path, *, overwrite: bool = False) -> None:
    """Write the folder, complete or not at all, for a model that is on the Hub."""
    base, names = base_on_the_hub(model), [path.resolve().name for path in artifacts]
    if base is None:
        raise InvalidValueError(
            f"a Space loads its model from the Hub, and {model.name!r} is on this machine only. Give its Hub id."
        )
    packages = {"steer2edit": Path(steer2edit.__file__).parent}
    if weights := embedded_file(model.name):  # its own requirements are compiled for long, and not needed
        packages[weights.parent.name] = weights.parent
    if len({*packages, *names}) < len(packages) + len(names):
        raise InvalidValueError(
            f"in a Space artifacts need different names (not {' or '.join(packages)}), got {', '.join(names)}."
        )
    try:
        needed = [one for one in requires("steer2edit") or [] if "extra ==" not in one]
        gradio = version("gradio")
    except PackageNotFoundError as error:
        raise InvalidValueError(f"a Space says what is installed, and {error.name} is not: install it.") from error
    with atomic_directory(directory, overwrite=overwrite) as scratch:
        for name, package in packages.items():
            shutil.copytree(package, scratch / name, ignore=lambda *_: {"__pycache__"})
        templates = scratch / "steer2edit" / "play" / "templates"
        for path, name in zip(artifacts, names, strict=True):
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, scratch / name)
        for name in ("app.py", "README.md"):
            text = (templates / f"{name}.txt").read_text(encoding="utf-8")
            text = text.format(model=model.name, names=names, gradio=gradio, base=base)
            (scratch / name).write_text(text, encoding="utf-8")
        (scratch / "requirements.txt").write_text("\n".join([*needed, ""]), encoding="utf-8")
