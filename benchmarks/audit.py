"""Reading a bf16 edit back: which heads and neurons does `inspect --base` find, how well, how fast, in how much memory?

The physics. A bf16 number has 8 significant bits, so an edited weight hides up to half a spacing of its change: of
SmolLM2's weights (about 0.1 to 0.2) ± 0.0002 to 0.0005, while a head with λ = 0.05 changes each of its 36,864 entries
by about 0.05 / √(576 · 64) = 0.00026. So small changes vanish in large weights, and a least-squares fit comes out too
small by up to a fifth. All entries of a column share one number a_j, though, and many small weights show it, so an
estimate that takes each entry for what it says (an interval) is far more precise than any one entry. Work is a few
dozen passes over the changed matrices; unchanged ones are read once. Memory is that of some rows, not of the model.

Verified: nothing is found in the unedited checkpoint; the given edit matches, at its strength, and no other tensor
changed; an entry of lm_head's (or the embedding's) tensor that is changed on top is found.

Each audit is a process of its own, so that its peak is its own: the interpreter with torch is subtracted.
"""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from timing import emit, say, spread

AIM = 0.99
SHOWN = 0.05
TAMPERED = "model.embed_tokens.weight"


def make_edits(model: str, folder: Path) -> Path:
    """The base, and a checkpoint edited in its heads, and one edited in its neurons, in the base's dtype."""
    from steer2edit.artifacts import apply_to_files, save_edit
    from steer2edit.editing import convert
    from steer2edit.method.hyperparameters import Hyperparameters
    from steer2edit.models import checkpoint_directory, load_model
    from steer2edit.steering.contrast import load_contrast
    from steer2edit.steering.extract import extract

    loaded = load_model(model)
    vectors = extract(loaded, load_contrast("truthfulness", loaded, limit=16))
    for name, settings in {
        "attn": Hyperparameters(rho_attn=0.2, rho_mlp=None, alpha=0.5),
        "mlp": Hyperparameters(rho_attn=None, rho_mlp=0.4, alpha=0.5),
    }.items():
        edit = convert(loaded, vectors, settings)
        save_edit(loaded, edit, folder / f"{name}-edit")
        apply_to_files(model, [(edit, 1.0)], folder / name)
    return checkpoint_directory(model)


def tampered_copy(source: Path, target: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    tensors[TAMPERED][17, 5] += 1
    save_file(tensors, target / "model.safetensors", {"format": "pt"})


def measure(base: str, edited: str, edit_directory: str) -> dict[str, Any]:
    """In a process of its own: audit, and compare with the edit."""
    import torch

    from steer2edit.artifacts import load_edit
    from steer2edit.audit import audit

    loaded = _peak()
    edit = load_edit(Path(edit_directory)) if edit_directory else None
    start = time.perf_counter()
    found = audit(base, edited, edit)
    result: dict[str, Any] = {
        "seconds": time.perf_counter() - start,
        "above_imports_mb": _peak() - loaded,
        "label": found.classification.label,
        "sentence": found.classification.sentence,
        "changed": [change.name for change in found.changes],
        "entries": {change.name: change.entries for change in found.changes if change.kind == "entries"},
        "match": None if found.match is None else {"matches": found.match.matches, "strength": found.match.strength},
    }
    if edit is not None:
        magnitudes = {site: own.magnitude for site, own in found.sites.items()}
        true = torch.cat([e.magnitude.double() for e in edit.sites.values()])
        seen = torch.cat([magnitudes.get(s, torch.zeros(e.magnitude.numel())) for s, e in edit.sites.items()])
        result |= _scores(true, seen.double())
    return result


def _scores(true: Any, seen: Any) -> dict[str, Any]:
    strong, called = true.abs() >= SHOWN, seen.abs() >= SHOWN
    both = int((strong & called).sum())
    error = (seen - true).abs()[strong]
    return {
        "components": int(strong.sum()),
        "precision": both / max(1, int(called.sum())),
        "recall": both / max(1, int(strong.sum())),
        "missed": [round(value, 4) for value in true[strong & ~called].tolist()],
        "largest_error": float(error.max()),
        "median_error": float(error.median()),
        "largest_relative_error": float((error / true.abs()[strong]).max()),
        "any_edited": {"true": int((true != 0).sum()), "found": int((seen != 0).sum())},
    }


def _peak() -> float:
    """Largest resident set so far in MB: a child's rusage begins with its parent's, the kernel's own mark does not."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def in_own_process(base: Path, edited: Path, edit: Path | None) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", str(base), str(edited), "" if edit is None else str(edit)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    say(f"{edited.name}: {result['seconds']:.1f} s, {result['above_imports_mb']:.0f} MB. {result['sentence']}")
    return result


def verify(base: Path, folder: Path, results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    for name, runs in results.items():
        if not runs[0]["match"]["matches"] or runs[0]["match"]["strength"] != 1:
            raise SystemExit(f"WRONG: {name}: the edit that was applied does not match: {runs[0]['match']}.")
        if runs[0]["label"] != "steer2edit-like":
            raise SystemExit(f"WRONG: {name} is called {runs[0]['label']}.")
    unedited = in_own_process(base, base, None)
    if unedited["changed"]:
        raise SystemExit(f"WRONG: the unedited checkpoint is said to differ in {unedited['changed'][0]}.")
    tampered_copy(folder / "attn", folder / "tampered")
    found = in_own_process(base, folder / "tampered", None)
    if found["entries"] != {TAMPERED: [[17, 5]]} or found["label"] != "steer2edit-like":
        raise SystemExit(f"WRONG: the tampered entry was not found: {found['entries']}, {found['label']}.")
    return {"unedited_is_identical": True, "tampered_entry_found": True, "edits_match": True}


def main(
    model: str = "smollm2",
    rounds: Annotated[int, typer.Option(min=1, help="Audits of each checkpoint, each in its own process.")] = 1,
    child: Annotated[tuple[str, str, str] | None, typer.Option(hidden=True)] = None,
) -> None:
    if child is not None:
        print(json.dumps(measure(*child)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_edits(model, folder)
        kinds = ("attn", "mlp")
        results = {
            kind: [in_own_process(base, folder / kind, folder / f"{kind}-edit") for _ in range(rounds)]
            for kind in kinds
        }
        verified = verify(base, folder, results)
    scores = (
        "components",
        "precision",
        "recall",
        "missed",
        "largest_error",
        "median_error",
        "largest_relative_error",
        "any_edited",
    )
    emit(
        "audit",
        n={"rounds": rounds},
        model=model,
        shown=SHOWN,
        found={kind: {score: runs[0][score] for score in scores} for kind, runs in results.items()},
        seconds={kind: spread([run["seconds"] for run in runs], 2) for kind, runs in results.items()},
        above_imports_mb={kind: spread([run["above_imports_mb"] for run in runs], 1) for kind, runs in results.items()},
        aim={"precision": AIM, "recall": AIM},
        met=all(runs[0][score] >= AIM for runs in results.values() for score in ("precision", "recall")),
        verified=verified,
    )


if __name__ == "__main__":
    typer.run(main)
