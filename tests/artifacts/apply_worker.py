"""Applies an edit in processes of its own, which can be measured and killed.

Importing torch takes seconds, so one process imports it and then forks for every line it reads: a JSON object with
`base`, `factors` and `out`. It answers with a line `started <pid>`, and after the child has ended with its peak memory
in MB above the start, or the error.
"""

import json
import os
import sys
import warnings
from pathlib import Path

from safetensors.torch import load_file

from steer2edit.artifacts import apply_to_files, open_base
from steer2edit.core import Site, SiteEdit, WeightEdit

FIELDS = ("output_direction", "row", "magnitude", "importance")


def high_water_mark() -> int:
    return int(next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")).split()[1])


def work(base: str, factors: str, out: str) -> None:
    tensors = load_file(factors)
    names = {key.rsplit(".", 1)[0] for key in tensors}
    edit = WeightEdit({Site.parse(n): SiteEdit(*(tensors[f"{n}.{field}"] for field in FIELDS)) for n in names})
    opened = open_base(base)
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water_mark()
    apply_to_files(opened, [(edit, 1.0)], out)
    print((high_water_mark() - before) / 1024, flush=True)


def main() -> None:
    warnings.simplefilter("ignore")  # newer Pythons warn of forking where there are threads
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            print("started", os.getpid(), flush=True)
            try:
                work(**json.loads(line))
            except Exception as error:
                print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            print("killed", flush=True)


if __name__ == "__main__":
    main()
