"""Turn an activation-steering vector into a persistent, component-level weight edit (arXiv 2602.09870).

import steer2edit as s2e

model = s2e.load("smollm2")
vectors = s2e.extract(model, "safety", effects=True)
edit = s2e.convert(model, vectors)
with edit.on(model):
    print(model.reply("..."))
edit.save("edit")
"""

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if "OMP_WAIT_POLICY" not in os.environ:
    # Read when torch loads libgomp. Its threads spin 300,000 times before they sleep, which starves the one they wait
    # for where other programs want the cores: replies take 3 to 30 times as long (benchmarks/busy_machine.py).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from steer2edit.api import *

__version__ = "0.1.0"
_ROOMS = ("audit", "search", "stress")  # which have the names of what one calls


class _Room(ModuleType):
    """A package that can be called, as what does in one call what it is for."""

    @property
    def _function(self) -> Any:
        return getattr(importlib.import_module("steer2edit.api"), self.__name__.rpartition(".")[2])

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self._function(*args, **keywords)

    @property
    def __signature__(self) -> Any:
        return importlib.import_module("inspect").signature(self._function)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ROOMS and isinstance(value, ModuleType):  # the import system hands in the room it has imported
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import steer2edit` and the command line's help stay instant."""
    if name in _ROOMS:
        return importlib.import_module(f"steer2edit.{name}")
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module 'steer2edit' has no attribute {name!r}")
    api = importlib.import_module("steer2edit.api")
    if name != "__all__" and name not in api.__all__:
        raise AttributeError(f"module 'steer2edit' has no attribute {name!r}")
    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])
