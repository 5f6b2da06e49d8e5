"""Configurations evaluated per minute: a search in one process against one process and one model load for each.

The physics. A process that evaluates one configuration imports torch and transformers, reads the weights, computes
u, k and g from them, and then generates a few replies in a batch far too small to fill the machine: each step of
generation reads all weights, for 4 rows as for 128. A search pays the start once; u, k and g do not depend on
(ρ, α), so all configurations come from one pass over the weights; and rows of one batch may carry different edits, so
the few prompts of many configurations fill a batch together. So the gain has two factors: what is not started again,
which shrinks as a configuration gets more prompts (the start is constant), and what batching gives, which shrinks as
a configuration's own prompts fill a batch. Hence one JSON line per amount of work: a sanity filter (short answers to
8 requests scored, nothing generated), and evaluations with a growing number of prompts. The aim is 20 times.

Arms, in turn, the same work, requests and number of tokens for each configuration:
`own_process`: a process of its own, timed from outside: import, load, convert, generate with the edited weights, judge
refusals, and compare its distributions with the base's on the given answers of the base. It is spared generating
those answers, and its own prompts share a batch.
`one_by_one`: one process, one load, one set of factors; then as above, configuration by configuration, in the weights.
`together`: the search's way: tasks under all configurations at once. `together_with_start` adds to it, for this
number of configurations, the start (import and load, as the processes report theirs) and the factors.

Verified: in float32, a process of its own and the batch agree on every reply, and on NLL and KL within 1e-4; in the
model's own dtype, where another batch rounds otherwise, the share of equal replies and the largest differences are
reported.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from one_configuration import Found, Source, evaluated
from timing import emit, paired_ratio, say, spread, timed

from steer2edit.artifacts import save_vectors
from steer2edit.core import Editing, SteeringVectors, WeightEdit
from steer2edit.editing import Factors, compute_factors
from steer2edit.engines import RememberingEngine, TransformersEngine
from steer2edit.evaluation import DriftTask, Task, behaviour
from steer2edit.evaluation.likelihood_tasks import base_answers
from steer2edit.evaluation.reply_tasks import RefusalTask
from steer2edit.method.hyperparameters import Hyperparameters, grid
from steer2edit.models import EncodedResponse, LanguageModel, Sampling
from steer2edit.search.generation import sanity_task
from steer2edit.steering.contrast import load_contrast
from steer2edit.steering.extract import extract

AIM = 20.0
TOLERANCE = 1e-4
SANITY_TOKENS = 12  # of an answer in the search's sanity filter


@dataclass(frozen=True)
class Work:
    """What is measured of each configuration."""

    name: str
    sets: dict[str, list[str]]
    drift: list[str]
    new_tokens: int
    configurations: list[Hyperparameters]

    @property
    def prompts(self) -> list[str]:
        """All prompts that are answered."""
        return [prompt for prompts in self.sets.values() for prompt in prompts]

    @property
    def tasks(self) -> list[Task]:
        """The same as the search measures them."""
        sampling = Sampling(max_new_tokens=self.new_tokens)
        refusals = [RefusalTask(name, prompts, sampling) for name, prompts in self.sets.items()]
        return [*refusals, DriftTask("", self.drift, sampling)]


@dataclass(frozen=True)
class Bench:
    """The loaded model, what its configurations come from, and where a process of its own reads the same."""

    source: Source
    model: LanguageModel
    vectors: SteeringVectors
    folder: Path

    @classmethod
    def of(cls, source: Source, folder: Path) -> "Bench":
        """Load, and extract vectors from a small contrast."""
        model = source.open()
        vectors = extract(model, load_contrast("truthfulness", model, limit=8))
        save_vectors(vectors, folder / f"vectors-{source.dtype}.safetensors", overwrite=True)
        return cls(source, model, vectors, folder)

    def factors(self) -> Factors:
        """u, k and g, anew."""
        return compute_factors(self.model, self.vectors, force=True)

    def answers(self, work: Work) -> list[EncodedResponse]:
        """The base's own answers that drift is measured on."""
        sampling = Sampling(max_new_tokens=work.new_tokens)
        answers = base_answers(TransformersEngine(self.model), work.drift, sampling)
        return [answer for answer in answers if answer is not None]

    def together(self, work: Work, edits: Sequence[WeightEdit]) -> list[Found]:
        """The search's way: every task under all configurations at once, the base's answers generated once."""
        engine = RememberingEngine(TransformersEngine(self.model))
        *refusals, drift = [task.measure(engine, [Editing(edit) for edit in edits]) for task in work.tasks]
        found = []
        for index, drifted in enumerate(drift):
            own = [measured[index] for measured in refusals]
            replies = [text for one in own for texts in one.replies.values() for text in texts]
            verdicts = [verdict for one in own for verdicts in one.outcomes.values() for verdict in verdicts]
            found.append(Found(replies, verdicts, [*drifted.values["nll_increase"]], [*drifted.values["kl"]]))  # type: ignore[list-item]
        return found

    def one_by_one(self, work: Work, answers: Sequence[EncodedResponse], edits: Sequence[WeightEdit]) -> list[Found]:
        """One configuration after another in this process, each in the weights."""
        return [evaluated(self.model, work.prompts, work.new_tokens, answers, edit) for edit in edits]

    def own_process(
        self, work: Work, answers: Sequence[EncodedResponse], chosen: Hyperparameters
    ) -> tuple[float, float, Found]:
        """(seconds in all, seconds until the model is loaded, what was found) of a process of its own."""
        job = {
            "source": asdict(self.source),
            "vectors": str(self.folder / f"vectors-{self.source.dtype}.safetensors"),
            "hyperparameters": chosen.to_json(),
            "prompts": work.prompts,
            "new_tokens": work.new_tokens,
            "answers": [(answer.ids, answer.start) for answer in answers],
            "launched": time.time(),
        }
        path = self.folder / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, str(Path(__file__).with_name("one_configuration.py")), str(path)]
        seconds, done = timed(lambda: subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True))
        result = json.loads(done.stdout.splitlines()[-1])
        return seconds, result["start"], Found(**result["found"])


def works(
    prompts: Sequence[int], new_tokens: int, configurations: int, filtered_configurations: int, *, random: bool
) -> list[Work]:
    """The sanity filter, then evaluations: half the prompts harmful, half benign.

    Cosines with random weights are below every threshold, so edits of those have all components (α = 0).
    """
    every = [replace(chosen, alpha=0.0) if random else chosen for chosen in grid()]
    spread_out = [every[i] for i in _sample(len(every), configurations)]
    filtered = [str(prompt) for prompt in sanity_task(behaviour("safety", "validation")).items]
    found = [Work("sanity filter", {}, filtered, SANITY_TOKENS, every[:filtered_configurations])]
    for count in prompts:
        sets = behaviour("safety", "validation", limit=count // 2).prompts
        found.append(Work(f"{count} prompts", sets, sets["benign"], new_tokens, spread_out))
    return found


def agreement(ours: Sequence[Found], theirs: Sequence[Found]) -> dict[str, float]:
    """Share of equal replies, and the largest differences of NLL and KL."""
    pairs = list(zip(ours, theirs, strict=True))
    replies = [a == b for one, other in pairs for a, b in zip(one.replies, other.replies, strict=True)]
    return {
        "equal_replies": round(sum(replies) / len(replies), 3) if replies else 1.0,
        **{
            f"largest_difference_{name}": max(
                abs(a - b)
                for one, other in pairs
                for a, b in zip(getattr(one, name), getattr(other, name), strict=True)
            )
            for name in ("nll_increase", "kl")
        },
    }


def verify(source: Source, work: Work, folder: Path) -> dict[str, float]:
    """A process of its own against the batch, in float32."""
    bench = Bench.of(replace(source, dtype="float32"), folder)
    edits = bench.factors().edits(work.configurations)
    sampled = _sample(len(edits), 2)
    answers = bench.answers(work)
    alone = [bench.own_process(work, answers, work.configurations[i])[2] for i in sampled]
    found = agreement(bench.together(work, [edits[i] for i in sampled]), alone)
    say(f"float32: {found}")
    worst = max(found["largest_difference_nll_increase"], found["largest_difference_kl"])
    if found["equal_replies"] < 1 or not worst <= TOLERANCE:
        raise SystemExit(f"WRONG: a process of its own and the batch differ: {found}, tolerance {TOLERANCE}.")
    return {**found, "tolerance": TOLERANCE}


def _sample(count: int, wanted: int) -> list[int]:
    """Indices from the middle of equal parts."""
    return [(2 * i + 1) * count // (2 * wanted) for i in range(min(wanted, count))]


def measure(bench: Bench, work: Work, processes: int, rounds: int) -> dict[str, Any]:
    """Seconds per configuration of every arm in every round, and what the arms agree on."""
    answers = bench.answers(work)
    edits = bench.factors().edits(work.configurations)
    bench.together(work, edits[:2])  # warms up
    taken: dict[str, list[float]] = {"own_process": [], "one_by_one": [], "together": [], "together_with_start": []}
    sampled = _sample(len(edits), processes)
    found: dict[str, float] = {}
    for number in range(rounds):
        runs = [bench.own_process(work, answers, work.configurations[i]) for i in sampled]
        few, _ = timed(lambda: bench.one_by_one(work, answers, [edits[i] for i in sampled]))
        factors, _ = timed(bench.factors)
        batch, together = timed(lambda: bench.together(work, edits))
        found = agreement([together[i] for i in sampled], [run[2] for run in runs])
        start = statistics.median(run[1] for run in runs)
        taken["own_process"].append(statistics.mean(run[0] for run in runs))
        taken["one_by_one"].append(few / len(sampled))
        taken["together"].append(batch / len(edits))
        taken["together_with_start"].append((start + factors + batch) / len(edits))
        shown = ", ".join(f"{name} {seconds[-1]:.3f} s" for name, seconds in taken.items())
        say(f"{work.name}, round {number + 1} of {rounds}: {shown} per configuration; start {start:.1f} s")
    return {
        "per_minute": {name: spread([60 / s for s in seconds], 1) for name, seconds in taken.items()},
        "gain": paired_ratio(taken["own_process"], taken["together"]),
        "gain_with_start": paired_ratio(taken["own_process"], taken["together_with_start"]),
        "gain_from_not_starting_again": paired_ratio(taken["own_process"], taken["one_by_one"]),
        "gain_from_batching": paired_ratio(taken["one_by_one"], taken["together"]),
        "agreement": found,
    }


def main(
    model: str = "smollm2",
    dtype: str = "auto",
    device: str = "auto",
    model_shape: Annotated[str | None, typer.Option(help="Random weights of this shape instead: 7b.")] = None,
    prompts: Annotated[str, typer.Option(help="Prompts of a configuration; one JSON line for each number.")] = "4,16",
    new_tokens: Annotated[int, typer.Option(min=1)] = 16,
    configurations: Annotated[int, typer.Option(min=2, max=125, help="Evaluated together.")] = 32,
    filtered: Annotated[int, typer.Option(min=2, max=125, help="Through the sanity filter together.")] = 125,
    processes: Annotated[int, typer.Option(min=1, help="Processes of their own per round.")] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    check: Annotated[bool, typer.Option(help="Whether to verify in float32 first.")] = True,
) -> None:
    source = Source(model, dtype, device, model_shape)
    todo = works(
        [int(count) for count in prompts.split(",")], new_tokens, configurations, filtered, random=bool(model_shape)
    )
    with tempfile.TemporaryDirectory() as scratch:
        verified = verify(source, todo[-1], Path(scratch)) if check else None
        bench = Bench.of(source, Path(scratch))
        for work in todo:
            measured = measure(bench, work, processes, rounds)
            emit(
                "configurations",
                work=work.name,
                n={
                    "rounds": rounds,
                    "configurations": len(work.configurations),
                    "own_processes": rounds * processes,
                    "prompts": len(work.prompts),
                    "new_tokens": work.new_tokens if work.prompts else 0,
                    "answers_scored": len(work.drift),
                },
                model=bench.model.name,
                dtype=str(bench.model.dtype).removeprefix("torch."),
                device=str(bench.model.device),
                threads=torch.get_num_threads(),
                **measured,
                aim={"gain_with_start": AIM},
                met=measured["gain_with_start"]["median"] >= AIM,
                verified=verified,
            )


if __name__ == "__main__":
    typer.run(main)
