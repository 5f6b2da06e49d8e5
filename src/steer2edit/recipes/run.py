"""From a behaviour to a tested edit: vectors, edit, preview, held-out figures beside steering, one report."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steer2edit.artifacts import apply_to_files, load_edit, load_vectors, save_edit, save_vectors
from steer2edit.artifacts.manifest import read_json
from steer2edit.artifacts.run_folder import RunFolder, RunKind, write_json
from steer2edit.core import Steering, SteeringVectors, WeightEdit
from steer2edit.editing import convert, edited, merged
from steer2edit.engines import RememberingEngine, TransformersEngine
from steer2edit.errors import ArtifactError
from steer2edit.estimates import CHANGE, POINTS, Condition, Estimate
from steer2edit.evaluation.behaviours import Behaviour, behaviour
from steer2edit.evaluation.calibration import at_drift, calibrate
from steer2edit.evaluation.likelihood_tasks import DriftTask
from steer2edit.evaluation.metrics import for_card, metric_name
from steer2edit.evaluation.statistics import compare
from steer2edit.evaluation.task import BASE_ARM, edit_arm, evaluate, steering_arm
from steer2edit.models import LanguageModel, Sampling, generate, load_model
from steer2edit.models.reply import end_ids
from steer2edit.recipes.making import make_edit, make_vectors, preview, told
from steer2edit.report import write_comparison_page, write_report
from steer2edit.search.comparison import COMPARISON, PAPER
from steer2edit.search.run import Narrate, run_facts, run_search, search_results
from steer2edit.search.search import Search, prepare_search
from steer2edit.settings import Accepting, ConvertOptions, ExtractOptions, RunOptions, SearchOptions
from steer2edit.steering.examples import require_no_overlap
from steer2edit.steering.presets import safety_prompts

RESULTS_FILE = "results.json"


def write_run(results: dict[str, Any], edit: WeightEdit, out: Path) -> None:
    """Write `results.json` and `report.html` into a run folder, in place of those that are there."""
    write_json(out / RESULTS_FILE, results)
    write_report(results, edit, out / "report.html", overwrite=True)


def render_again(run: Path, page: Path | None = None) -> Path:
    """Make the report of a run folder again, by default as its `report.html`; an ArtifactError if none has ended."""
    folder = run if (run / RESULTS_FILE).is_file() else run / "search"
    if not (folder / RESULTS_FILE).exists():
        raise ArtifactError(
            f"there is no {RESULTS_FILE} in {run}: give the --out of a search, a comparison, a recipe or the demo that "
            "has ended."
        )
    results = read_json(folder / RESULTS_FILE)
    page = page or folder / "report.html"
    if results.get("kind") == COMPARISON:
        write_comparison_page(results, page)
    else:
        write_report(results, load_edit(folder / "edit"), page, overwrite=True)
    return page


def search_and_report(search: Search, out: Path, narrate: Narrate, command: str = "") -> dict[str, Any]:
    """Search, and write `results.json`, `report.html` and the recommended `edit/` into the run folder."""
    result = run_search(search, out, narrate)
    results = search_results(search, result, command)
    write_run(results, result.edit, out)
    return results


def verify_artifacts(
    model: LanguageModel, edit: WeightEdit, folder: Path, prompts: Sequence[str], max_new_tokens: int
) -> dict[str, dict[str, int]]:
    """How many greedy replies of each artifact, reloaded in a fresh process, equal those of the edit in this one.

    The adapter is compared in float32 with the run-time edit; the checkpoint in its own dtype with the merged edit.
    """
    exact, found = load_model(model.name, dtype="float32", device="cpu"), {}
    reloaded: dict[str, tuple[LanguageModel, Any, Any, Path | None]] = {
        "adapter": (exact, edited, exact.network.config._name_or_path, folder / "edit"),
        "checkpoint": (model, merged, folder / "checkpoint", None),
    }
    for what, (own, applied, base, adapter) in reloaded.items():
        with applied(own, edit):
            expected = generate(own, prompts, Sampling(max_new_tokens), description="Verifying")
        request = {
            "base": str(base), "adapter": adapter and str(adapter), "dtype": str(own.dtype).removeprefix("torch."),
            "prompts": list(prompts), "max_new_tokens": max_new_tokens, "ends": end_ids(exact),
        }  # fmt: skip
        command = [sys.executable, "-I", str(Path(__file__).with_name("reload.py"))]
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True)
        if done.returncode:
            raise ArtifactError(f"{adapter or base} does not load in a fresh process: {done.stderr.strip()[-500:]}")
        same = sum(list(reply.ids) == ids for reply, ids in zip(expected, json.loads(done.stdout), strict=True))
        found[what] = {"identical": same, "n": len(expected)}
    return found


RUN = RunKind("run", 1, "working", "model and options")
RULE = "measured effects with a gate: nothing was searched"
_DRIFT_PROMPTS = 48


def run_behaviour(
    model: LanguageModel,
    what: str,
    out: Path,
    narrate: Narrate,
    options: RunOptions = RunOptions(),
    *,
    paper: bool = False,
    verified: int = 0,
    force: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Make and test an edit for a behaviour in the folder `out`, going on where an earlier call was stopped.

    With `paper` an edit by the paper's rule is beside it, at the same drift; `verified` is how many prompts of each
    kind are compared after reloading adapter and checkpoint in a fresh process: without any, none is written.
    """
    part = behaviour(  # first: bad data shall not cost an extraction
        what, "held_out", limit=options.limit, max_new_tokens=options.max_new_tokens, seed=options.seed
    )
    source = ExtractOptions(
        options.contrast or what, limit=options.limit, seed=options.seed, effects=True, robust=options.robust,
        max_new_tokens=options.max_new_tokens or ExtractOptions.max_new_tokens,
    )  # fmt: skip
    for task in part.tasks:
        task.require_fit(model)
    about = {**identity(what, model, source), "robust": source.robust, "kl": options.kl or "by default",
             "search": options.search}  # fmt: skip
    with RunFolder(out, RUN).opened(about) as folder:
        vectors = vectors_once(model, source, out / "vectors.safetensors", narrate)
        require_no_overlap({"vector": vectors.metadata.get("prompts", ()), "held-out": part.digests})
        if options.search:
            wanted = SearchOptions(behaviour=what, limit=options.limit, max_new_tokens=options.max_new_tokens,
                                   seed=options.seed, **options.of_search)  # fmt: skip
            return search_edit(model, vectors, wanted, out / "search", narrate, command, force=force)
        if not (out / "edit").exists():
            made = make_edit(model, vectors, ConvertOptions(kl=options.kl), Accepting(force=force))
            save_edit(model, made, out / "edit")
        edit = load_edit(out / "edit")
        seen = preview(model, vectors, edit)
        narrate(told(seen), [])
        results = {
            **run_facts(f"An edit for {part.name}, {model.name}", part, model, command, asdict(options)),
            "diagnosis": vectors.diagnosis,
            "preview": None if seen is None else seen.to_json(),
            **_held_out(model, vectors, edit, part, folder, narrate, paper=paper),
        }
        if verified:
            results["verification"] = _verification(model, edit, part, folder, narrate, verified)
        write_run(results, edit, out)
        return results


def search_edit(
    model: LanguageModel, vectors: SteeringVectors, options: SearchOptions, out: Path, narrate: Narrate, command: str,
    *, force: bool,
) -> dict[str, Any]:  # fmt: skip
    """Search for an edit in the folder `out`, and have a first look at it."""
    found = search_and_report(
        prepare_search(model, vectors, options, accepting=Accepting(force=force)), out, narrate, command
    )
    narrate(told(preview(model, vectors, load_edit(out / "edit"))), [])
    return found


def _held_out(
    model: LanguageModel, vectors: SteeringVectors, edit: WeightEdit, part: Behaviour, folder: RunFolder,
    narrate: Narrate, *, paper: bool,
) -> dict[str, Any]:  # fmt: skip
    """Base, steering, the paper's rule if it is wanted, and the edit, at the same drift on held-out items."""
    engine, kl = RememberingEngine(TransformersEngine(model)), edit.metadata["drift"]["kl"]

    def spending() -> dict[str, float]:
        drift = DriftTask("", safety_prompts("validation")[1][:_DRIFT_PROMPTS])
        (found,) = calibrate(engine, [(lambda s: Steering(vectors, s), 0.1)], drift, kl)
        return {"strength": round(found.strength, 4)}

    strength = folder.once("steering", spending)["strength"]

    def measure() -> list[Condition]:
        arms = [BASE_ARM, steering_arm(vectors, strength)]
        if paper:
            arms.append(edit_arm(at_drift(engine, convert(model, vectors, PAPER), kl), "the paper's rule"))
        return evaluate(engine, part.tasks, [*arms, edit_arm(edit, "edit")])

    final = folder.conditions("held_out", "conditions", measure)
    narrate(f"Held-out prompts; steering and edit spend KL {kl:.2g} on validation prompts:", final)
    save_edit(model, edit, folder.path / "edit", evaluation=for_card(final), overwrite=True)
    gaps = compare([final[1], final[-1]])[0]["differences"]  # item by item, but for what compares with the base
    for name, gap in gaps.items():
        metric = metric_name(name)
        notation = POINTS if metric.scale == "share" else CHANGE
        narrate(f"{metric.short}, edit less steering: {notation.text(Estimate(**gap), n=True)}.", [])
    return {
        "held_out": {"conditions": [c.to_json() for c in final]},
        "edit_minus_steering": gaps,
        "prompts": part.prompts,
        "chosen": {
            "hyperparameters": edit.metadata["hyperparameters"],
            "steering_strength": strength,
            "rule": RULE,
        },
    }


def _verification(
    model: LanguageModel, edit: WeightEdit, part: Behaviour, folder: RunFolder, narrate: Narrate, count: int
) -> dict[str, Any]:
    """How many greedy replies are the same from the reloaded adapter, and from the reloaded checkpoint."""
    if not (folder.path / "checkpoint").exists():
        apply_to_files(model.name, [(edit, 1.0)], folder.path / "checkpoint")
    prompts = [text for texts in part.prompts.values() for text in texts[:count]]
    longest = part.drift.sampling.max_new_tokens
    found: dict[str, Any] = folder.once(
        "verification", lambda: verify_artifacts(model, edit, folder.path, prompts, longest)
    )
    counts = {name: f"{one['identical']} of {one['n']}" for name, one in found.items()}
    narrate(
        "Reloaded in a fresh process with plain transformers and PEFT: identical greedy replies for "
        f"{counts['adapter']} prompts (adapter) and {counts['checkpoint']} (checkpoint).",
        [],
    )
    return found


def vectors_once(model: LanguageModel, options: ExtractOptions, path: Path, narrate: Narrate) -> SteeringVectors:
    """The vectors of the folder, extracted if it has none yet."""
    if path.exists():
        narrate(f"Steering vectors of an earlier call: {path}.", [])
        return load_vectors(path)
    vectors = make_vectors(model, options)
    save_vectors(vectors, path)
    diagnosis = vectors.diagnosis or {}
    counts = diagnosis["counts"]["train"]
    narrate(
        f"Steering vectors from {counts['positive']} positive and {counts['negative']} negative responses. "
        f"{diagnosis['summary']}",
        [],
    )
    return vectors


def identity(what: str, model: LanguageModel, options: ExtractOptions) -> dict[str, Any]:
    """What the vectors of a run depend on; a search has an identity of its own."""
    source = str(options.contrast)
    files = sorted(path for path in (Path(source), *Path(source).glob("*")) if path.is_file())
    digest = hashlib.sha256(b"".join(map(Path.read_bytes, files))).hexdigest() if files else None
    made = {name: getattr(options, name) for name in ("labeller", "max_new_tokens", "temperature")}
    return {
        "behaviour": what,
        **model.identity(),
        "contrast": {**made, "source": source, "sha256": digest},
        "limit": options.limit,
        "seed": options.seed,
    }
