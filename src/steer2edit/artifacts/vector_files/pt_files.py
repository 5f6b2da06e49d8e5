"""Reading `.pt` files: tensors, text, numbers and containers; whatever else a pickle holds is refused and never run."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from steer2edit.errors import ArtifactError


def read_pt(path: Path, *, mapped: bool = False) -> Any:
    """The content of a file that `torch.save` wrote, read with `weights_only=True`.

    Args:
        path: of the file.
        mapped: leave tensors in the file until they are used, unless it is of the format before torch 1.6.

    Raises:
        ArtifactError: it is damaged, of another format, or holds Python objects.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch advises to load what is refused here
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except Exception as error:  # a hostile or damaged pickle can raise anything; whatever it is, the file is refused
        reason = " ".join(str(error).split())
        if "GLOBAL" in reason or "REDUCE" in reason:
            raise ArtifactError(
                f"{path} is refused: besides tensors it holds pickled Python objects, which can run code when they "
                f"are loaded. Nothing in it was run. {_remedy(reason)}"
            ) from error
        shown = reason.split("This file can still be loaded")[0][:200]  # torch goes on with how to load it unchecked
        raise ArtifactError(
            f"{path} is not a readable .pt file ({shown.strip()}): it is truncated, damaged, or of another format."
        ) from error


def is_official_edit(content: object) -> bool:
    """Whether this is meant to be an edit of the official code."""
    return isinstance(content, dict) and {"attn", "mlp", "meta"} <= content.keys()


def _remedy(reason: str) -> str:
    if "steering_vectors" in reason or "SteeringVector" in reason:
        return (
            "It seems to be an object of the steering-vectors library. In Python, where you have that object: "
            "steer2edit.save_vectors(steer2edit.as_vectors(vector), 'vectors.safetensors'), with use_at='mlp' in "
            "as_vectors for a vector of decoder blocks."
        )
    return "Save only tensors, best as safetensors."
