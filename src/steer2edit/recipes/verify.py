"""Do the saved artifacts behave as the edit did? Asked of a fresh process that has nothing of ours."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steer2edit.core import WeightEdit
from steer2edit.editing import edited, merged
from steer2edit.errors import ArtifactError
from steer2edit.models import LanguageModel, Sampling, generate, load_model
from steer2edit.models.reply import end_ids


def verify_artifacts(
    model: LanguageModel, edit: WeightEdit, adapter: Path, checkpoint: Path, prompts: Sequence[str], max_new_tokens: int
) -> dict[str, dict[str, int]]:
    """How many greedy replies of each reloaded artifact equal those of the edit in this process, token by token.

    The adapter is compared in float32 with the run-time edit; the checkpoint in its own dtype with the edit merged
    into the weights.

    Returns:
        `{"adapter": {"identical", "n"}, "checkpoint": {"identical", "n"}}`.

    Raises:
        ArtifactError: an artifact does not load in a fresh process.
    """
    sampling = Sampling(max_new_tokens)
    exact = load_model(model.name, dtype="float32", device="cpu")
    with edited(exact, edit):
        from_hook = [list(reply.ids) for reply in generate(exact, prompts, sampling, description="Verifying")]
    with merged(model, edit):
        from_weights = [list(reply.ids) for reply in generate(model, prompts, sampling, description="Verifying")]
    dtype = str(model.dtype).removeprefix("torch.")
    base = str(exact.network.config._name_or_path)
    asked = {"prompts": list(prompts), "max_new_tokens": max_new_tokens, "ends": end_ids(exact)}
    from_adapter = _reloaded({"base": base, "adapter": str(adapter), "dtype": "float32", **asked})
    from_checkpoint = _reloaded({"base": str(checkpoint), "adapter": None, "dtype": dtype, **asked})
    return {
        "adapter": _agreement(from_hook, from_adapter),
        "checkpoint": _agreement(from_weights, from_checkpoint),
    }


def _reloaded(request: Mapping[str, Any]) -> list[list[int]]:
    script = Path(__file__).with_name("reload.py")
    done = subprocess.run(
        [sys.executable, "-I", str(script)], input=json.dumps(request), capture_output=True, text=True
    )
    if done.returncode:
        raise ArtifactError(
            f"{request['adapter'] or request['base']} does not load in a fresh process: {done.stderr.strip()[-500:]}"
        )
    replies: list[list[int]] = json.loads(done.stdout)
    return replies


def _agreement(expected: list[list[int]], found: list[list[int]]) -> dict[str, int]:
    return {"identical": sum(a == b for a, b in zip(expected, found, strict=True)), "n": len(expected)}
