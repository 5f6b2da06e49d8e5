"""The parts of the package, each imported when a command first asks it for something: so `--help` is instant."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import steer2edit.audit as audit
    import steer2edit.recipes.recipe_run  # noqa: F401 (so that mypy knows the modules of recipes)
    import steer2edit.search as search
    import steer2edit.stress as stress
    from steer2edit import api, artifacts, core, editing, engines, evaluation, models, play, recipes, report, steering

__all__ = ["api", "artifacts", "audit", "core", "editing", "engines", "evaluation", "models", "play", "recipes"]
__all__ += ["report", "search", "steering", "stress"]


class _Late(ModuleType):
    def __getattr__(self, name: str) -> Any:
        found = import_module(self.__name__)
        return getattr(found, name) if hasattr(found, name) else import_module(f"{self.__name__}.{name}")


if not TYPE_CHECKING:
    globals().update({name: _Late(f"steer2edit.{name}") for name in __all__})
