"""Threads that wait sleep soon, unless the user or an earlier import has decided otherwise."""

import json
import os
import subprocess
import sys

import pytest

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def seen_by_torch(module: str, **environment: str) -> list[object]:
    """What both variables are once a module is imported; torch must not be there yet, for it reads them then."""
    code = f"import json, os, sys, {module}; print(json.dumps([*map(os.environ.get, {NAMES}), 'torch' in sys.modules]))"
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run([sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True)
    return list(json.loads(done.stdout))


@pytest.mark.parametrize("module", ["steer2edit", "steer2edit.cli"])
def test_set_before_torch_is_imported(module: str) -> None:
    assert seen_by_torch(module) == ["10000", None, False]


def test_what_the_user_sets_stays() -> None:
    assert seen_by_torch("steer2edit", GOMP_SPINCOUNT="7") == ["7", None, False]
    assert seen_by_torch("steer2edit", OMP_WAIT_POLICY="active") == [None, "active", False]
