"""From a behaviour to a tested edit: vectors, edit, preview, held-out figures beside steering, one report."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steer2edit.artifacts import load_edit, load_vectors, save_checkpoint, save_edit, save_vectors
from steer2edit.artifacts.run_folder import RunFolder, RunKind
from steer2edit.core import Steering, SteeringVectors, WeightEdit
from steer2edit.editing import convert
from steer2edit.engines import Engine, RememberingEngine, TransformersEngine
from steer2edit.estimates import CHANGE, POINTS, Condition
from steer2edit.evaluation import (
    BASE_ARM,
    Behaviour,
    DriftTask,
    at_drift,
    behaviour,
    calibrate,
    described,
    edit_arm,
    evaluate,
    metric_name,
    paired,
    steering_arm,
)
from steer2edit.models import LanguageModel, recorded_chat
from steer2edit.recipes.making import make_edit, make_vectors
from steer2edit.recipes.pages import write_run
from steer2edit.recipes.preview import Preview, preview
from steer2edit.recipes.searched import search_and_report
from steer2edit.recipes.verify import verify_artifacts
from steer2edit.search import PAPER, Narrate, SearchOptions, run_facts
from steer2edit.settings import Accepting, ConvertOptions, ExtractOptions, RunOptions
from steer2edit.steering import prompt_digests, require_no_overlap, safety_prompts

RUN = RunKind("run", 1, "working", "model and options")
RULE = "measured effects with a gate, in closed form: nothing was searched"
_DRIFT_PROMPTS = 48


@dataclass(frozen=True)
class Extras:
    """What a demonstration does besides.

    Args:
        paper: compare with an edit by the paper's rule, at the same drift.
        verified: prompts of each kind whose replies are compared after reloading adapter and checkpoint in a fresh
            process; without any, no checkpoint is written.
    """

    paper: bool = False
    verified: int = 0


def run_behaviour(
    model: LanguageModel,
    what: str,
    out: Path,
    narrate: Narrate,
    options: RunOptions = RunOptions(),
    *,
    extras: Extras = Extras(),
    force: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Make and test an edit for a behaviour in the folder `out`, going on where an earlier call was stopped.

    Args:
        model: the base model.
        what: a behaviour, or a contrast file, whose held-out rows tell how far its positive responses are preferred.
        out: holds `vectors.safetensors`, `edit/`, `results.json` and `report.html`; with a search, in `search/`.
        narrate: told what was found, step by step.
        options: what the user decided.
        extras: what is done besides.
        force: edit with vectors that the diagnosis calls noise.
        command: what the user typed, for the record.

    Returns:
        What `results.json` holds.

    Raises:
        DataError: there is no such behaviour or file, or it is malformed.
        MismatchError: the folder belongs to another run.
        NoiseError: the diagnosis calls the vectors noise.
    """
    part = behaviour(  # first: bad data shall not cost an extraction
        what, "held_out", limit=options.limit, max_new_tokens=options.max_new_tokens, seed=options.seed
    )
    source = ExtractOptions(
        options.contrast or what, limit=options.limit, seed=options.seed, effects=True,
        max_new_tokens=options.max_new_tokens or ExtractOptions.max_new_tokens,
    )  # fmt: skip
    about = {**identity(what, model, source), "kl": options.kl, "search": options.search}
    with RunFolder(out, RUN).opened(about) as folder:
        vectors = vectors_once(model, source, out / "vectors.safetensors", narrate)
        asked = prompt_digests(prompt for prompts in part.prompts.values() for prompt in prompts)
        require_no_overlap({"vector": vectors.metadata.get("prompts", ()), "held-out": asked})
        if options.search:
            return _searched(model, vectors, what, out / "search", narrate, options, force, command)
        edit = _edit_once(model, vectors, out / "edit", ConvertOptions(kl=options.kl), force)
        seen = preview(model, vectors, edit)
        narrate(_told(seen), [])
        run = _Run(folder, RememberingEngine(TransformersEngine(model)), vectors, edit, options.kl, narrate)
        results = {
            **run_facts(f"An edit for {part.name}, {model.name}", part, model, command, asdict(options)),
            "diagnosis": vectors.diagnosis,
            "preview": None if seen is None else seen.to_json(),
            **run.held_out(part, extras.paper),
            **(run.verification(part, extras.verified) if extras.verified else {}),
        }
        write_run(results, edit, out)
        return results


@dataclass(frozen=True)
class _Run:
    """What the figures of a run are made with."""

    folder: RunFolder
    engine: Engine
    vectors: SteeringVectors
    edit: WeightEdit
    kl: float
    narrate: Narrate

    def held_out(self, part: Behaviour, paper: bool) -> dict[str, Any]:
        """Base, steering, the paper's rule if it is wanted, and the edit, at the same drift on held-out items."""
        found = self.folder.once("steering", lambda: {"strength": round(self._steering(), 4)})
        steering = steering_arm(self.vectors, found["strength"])

        def measure() -> list[Condition]:
            arms = [BASE_ARM, steering, *([edit_arm(self._paper(), "the paper's rule")] if paper else [])]
            return evaluate(self.engine, part.tasks, [*arms, edit_arm(self.edit, "edit")])

        final = self.folder.conditions("held_out", "conditions", measure)
        self.narrate(f"Held-out prompts; steering and edit spend KL {self.kl:g} on validation prompts:", final)
        save_edit(self.engine.model, self.edit, self.folder.path / "edit", evaluation=_card(final), overwrite=True)
        return {
            "held_out": {"conditions": [c.to_json() for c in final]},
            "edit_minus_steering": self._ahead(final[-1], final[1]),
            "prompts": part.prompts,
            "chosen": {
                "hyperparameters": self.edit.metadata["hyperparameters"],
                "steering_strength": found["strength"],
                "rule": RULE,
            },
        }

    def verification(self, part: Behaviour, count: int) -> dict[str, Any]:
        """How many greedy replies are the same from the reloaded adapter, and from the reloaded checkpoint."""
        model, adapter, checkpoint = self.engine.model, self.folder.path / "edit", self.folder.path / "checkpoint"
        if not checkpoint.exists():
            save_checkpoint(model, self.edit, checkpoint)
        prompts = [text for texts in part.prompts.values() for text in texts[:count]]
        longest = part.drift.sampling.max_new_tokens
        found = self.folder.once(
            "verification", lambda: verify_artifacts(model, self.edit, adapter, checkpoint, prompts, longest)
        )
        counts = {name: f"{one['identical']} of {one['n']}" for name, one in found.items()}
        self.narrate(
            "Reloaded in a fresh process with plain transformers and PEFT: identical greedy replies for "
            f"{counts['adapter']} prompts (adapter) and {counts['checkpoint']} (checkpoint).",
            [],
        )
        return {"verification": found}

    def _steering(self) -> float:
        task = DriftTask(safety_prompts("validation")[1][:_DRIFT_PROMPTS])
        return calibrate(self.engine, lambda s: Steering(self.vectors, s), task, self.kl, first=0.1).strength

    def _paper(self) -> WeightEdit:
        return at_drift(self.engine, convert(self.engine.model, self.vectors, PAPER), self.kl)

    def _ahead(self, edit: Condition, steering: Condition) -> dict[str, Any]:
        """Edit less steering, item by item, in every metric but those that compare with the base."""
        gaps = {}
        for name in edit.values:
            metric = metric_name(name)
            if not metric.against_base:
                gap = paired(edit.values[name], steering.values[name])
                notation = POINTS if metric.scale == "share" else CHANGE
                self.narrate(f"{metric.short}, edit less steering: {notation.text(gap, n=True)}.", [])
                gaps[name] = gap.to_json()
        return gaps


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
        "model": model.fingerprint,
        "chat": recorded_chat(model.describe()),
        "dtype": str(model.dtype),
        "contrast": {**made, "source": source, "sha256": digest},
        "limit": options.limit,
        "seed": options.seed,
    }


def _edit_once(
    model: LanguageModel, vectors: SteeringVectors, path: Path, options: ConvertOptions, force: bool
) -> WeightEdit:
    """The edit of the folder, made if it has none yet."""
    if not path.exists():
        save_edit(model, make_edit(model, vectors, options, Accepting(force=force)), path)
    return load_edit(path)


def _searched(
    model: LanguageModel, vectors: SteeringVectors, what: str, out: Path, narrate: Narrate, options: RunOptions,
    force: bool, command: str,
) -> dict[str, Any]:  # fmt: skip
    names = ("strategy", "trials", "strengths", "max_kl", "limit", "max_new_tokens", "seed")
    asked = {name: value for name in names if (value := getattr(options, name)) not in (None, ())}
    found = search_and_report(
        model, vectors, SearchOptions(behaviour=what, **asked), out, narrate, command=command, force=force
    )
    narrate(_told(preview(model, vectors, load_edit(out / "edit"))), [])
    return found


def _told(seen: Preview | None) -> str:
    return "No preview: there are no validation rows." if seen is None else " ".join(seen.sentences)


def _card(conditions: list[Condition]) -> dict[str, Any]:
    return {"conditions": [c.for_card() for c in conditions], "metrics": described(conditions)}
