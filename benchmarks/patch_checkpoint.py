"""Writing an edited checkpoint from its files: how much dearer than copying it, and how much memory?

The physics. A checkpoint of N bytes must be read and written once: 2 N through the page cache, which is what `cp -r`
does. An edit adds float32 sums and a SHA-256 over the edited tensors alone (o_proj and down_proj: about a quarter of a
dense model), and a flush to the disk at the end, without which a power cut could leave half a checkpoint. `cp` does
not flush, so two ratios are given: against `cp -r`, and against `cp -r` followed by `sync` of what it wrote. Memory is
one chunk of rows in float32, two or three times over: some ten MB, whatever the model's size. Loading and saving the
model with transformers holds all of it instead, or at least a shard at a time.

Where others use the machine too, seconds of CPU say more than seconds, so both are given.

The checkpoint is synthetic: shapes of a Llama, random bf16 weights, in shards of at most 1 GB. The arms take turns,
and everything written is deleted between them (not timed). `apply` is timed within a process that has torch loaded;
peak memory is measured in processes of their own, above what the interpreter holds with torch and this package loaded.

Verified: the values of sampled rows of every edited tensor are `W + u aᵀ` in float32, rounded once; the other
tensors' files are compared byte for byte by `cmp`; and the memory measurement sees transformers' load.
"""

import filecmp
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from extraction_memory import high_water_mark, reset_high_water_mark
from timing import emit, paired_ratio, say, spread

AIM_RATIO, AIM_MB = 1.3, 40
_LAYER = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_key_value_heads": 4}
_FIELDS = ("output_direction", "row", "magnitude", "importance")


def make_base(directory: Path, gigabytes: float) -> None:
    """Write shards tensor by tensor, so that making it takes no memory either."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    per_layer = 2 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    config = LlamaConfig(
        **_LAYER, vocab_size=32000, num_hidden_layers=max(1, round(gigabytes * 1e9 / per_layer)),
        tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    with torch.device("meta"):
        network = LlamaForCausalLM(config)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items() if name != "lm_head.weight"}
    generator = torch.Generator().manual_seed(0)
    pool = (0.02 * torch.randn(2**24 + 2**20, generator=generator)).bfloat16()
    weight_map: dict[str, str] = {}
    shard: dict[str, Any] = {}
    number, size = 0, 0
    directory.mkdir(parents=True)
    for index, (name, shape) in enumerate(shapes.items()):
        count = torch.Size(shape).numel()
        at = 1009 * index % 2**20
        repeats = -(-count // 2**24)
        values = pool[at : at + 2**24].repeat(repeats)[:count].reshape(shape)
        shard[name] = torch.ones_like(values) if len(shape) == 1 else values.clone()  # norms that hide nothing
        size += 2 * count
        weight_map[name] = f"model-{number:05d}.safetensors"
        if size > 1e9 or index == len(shapes) - 1:
            save_file(shard, directory / weight_map[name], {"format": "pt"})
            number, size, shard = number + 1, 0, {}
    index_file = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index_file))
    config.save_pretrained(directory)


def make_edit(base: Path, path: Path) -> None:
    """Random factors for every projection."""
    import torch
    from safetensors.torch import save_file

    from steer2edit.models import load_skeleton

    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for site, module in load_skeleton(str(base)).sites.items():
        (d, m), n = module.shape, module.component_count
        u, magnitude = torch.randn(d, generator=generator), torch.randn(n, generator=generator)
        values = (u / u.norm(), 0.05 * magnitude.repeat_interleave(m // n), magnitude, torch.zeros(n))
        tensors |= {f"{site}.{field}": value for field, value in zip(_FIELDS, values, strict=True)}
    save_file(tensors, path)


def read_edit(path: Path) -> Any:
    from safetensors.torch import load_file

    from steer2edit.core import Site, SiteEdit, WeightEdit

    tensors = load_file(path)
    names = {key.rsplit(".", 1)[0] for key in tensors}
    return WeightEdit({Site.parse(n): SiteEdit(*(tensors[f"{n}.{field}"] for field in _FIELDS)) for n in names})


def apply(base: Path, edit: Any, out: Path) -> None:
    from steer2edit.artifacts import apply_to_files

    apply_to_files(str(base), [(edit, 1.0)], out)


def through_transformers(base: Path, edit: Any, out: Path) -> None:
    """What one does without this: load, add, save."""
    import torch
    from transformers import AutoModelForCausalLM

    from steer2edit.editing import merged
    from steer2edit.models import LanguageModel

    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    with merged(LanguageModel(network), edit):
        network.save_pretrained(out, max_shard_size="1GB")


def copy(base: Path, out: Path) -> None:
    subprocess.run(["cp", "-r", str(base), str(out)], check=True)


def copy_and_flush(base: Path, out: Path) -> None:
    copy(base, out)
    subprocess.run(["sync", *map(str, out.iterdir())], check=True)


Rounds = dict[str, list[float]]


def timed_rounds(arms: dict[str, Callable[[Path], None]], out: Path, rounds: int) -> tuple[Rounds, Rounds]:
    """Seconds, and seconds of CPU, of every arm; arms take turns, the order turns round, the disk is quiet before."""
    names = list(arms)
    seconds: Rounds = {name: [] for name in names}
    cpu: Rounds = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            subprocess.run(["sync"], check=True)
            used, start = cpu_seconds(), time.perf_counter()
            arms[name](out)
            seconds[name].append(time.perf_counter() - start)
            cpu[name].append(cpu_seconds() - used)
            shutil.rmtree(out)
        shown = (f"{name} {seconds[name][-1]:.2f} s ({cpu[name][-1]:.2f} s of CPU)" for name in names)
        say(f"round {number + 1} of {rounds}: {', '.join(shown)}")
    return seconds, cpu


def cpu_seconds() -> float:
    """Of this process and those it has waited for: `cp` is one."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


def peak_memory(arm: str, base: Path, edit: Path, out: Path) -> dict[str, float]:
    """MB above the interpreter with torch, in a process of its own, and its seconds."""
    command = [sys.executable, __file__, "--child", arm, "--work", str(base.parent)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    shutil.rmtree(out)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    say(f"{arm}: {result['above_mb']:.0f} MB above {result['interpreter_mb']:.0f} MB")
    return result


def child(arm: str, work: Path) -> None:
    import transformers  # noqa: F401

    import steer2edit.artifacts  # noqa: F401

    edit = read_edit(work / "edit.safetensors")
    exact, before = reset_high_water_mark(), high_water_mark()
    {"apply": apply, "transformers": through_transformers}[arm](work / "base", edit, work / "out")
    print(json.dumps({"interpreter_mb": before, "above_mb": high_water_mark() - before, "exact": exact}))


def verify(base: Path, edit: Any, out: Path) -> dict[str, int]:
    import torch

    from steer2edit.artifacts import CheckpointManifest, read_manifest
    from steer2edit.artifacts.checkpoints.files import open_checkpoint

    before, after = open_checkpoint(base), open_checkpoint(out)
    names = read_manifest(out, CheckpointManifest).edited_tensors
    rows = 0
    for name, record in names.items():
        site_edit = next(e for site, e in edit.sites.items() if str(site) == record.site)
        for row in range(0, before.tensors[name].rows, 97):
            w = before.tensors[name].read_rows(row, row + 1).float()
            expected = (w + site_edit.output_direction[row] * site_edit.row).bfloat16()
            if not torch.equal(after.tensors[name].read_rows(row, row + 1), expected):
                raise SystemExit(f"WRONG: row {row} of {name} is not W + u aᵀ.")
            rows += 1
    others = [name for name in before.tensors if name not in names]
    for name in others:
        pairs = zip(before.tensors[name].blocks(), after.tensors[name].blocks(), strict=True)
        if not all(mine == theirs for mine, theirs in pairs):
            raise SystemExit(f"WRONG: {name} is not edited, but differs.")
    if not filecmp.cmp(base / "config.json", out / "config.json", shallow=False):
        raise SystemExit("WRONG: config.json differs.")
    return {"edited_tensors": len(names), "rows_compared": rows, "unedited_tensors_compared": len(others)}


def main(
    size: Annotated[float, typer.Option(help="Of the checkpoint, in GB.")] = 4.0,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    directory: Annotated[Path | None, typer.Option(help="Where to write; a temporary folder by default.")] = None,
    child_arm: Annotated[str | None, typer.Option("--child", hidden=True)] = None,
    work: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    if child_arm is not None and work is not None:
        return child(child_arm, work)
    folder = Path(tempfile.mkdtemp(prefix="patch-", dir=directory))
    base, factors, out = folder / "base", folder / "edit.safetensors", folder / "out"
    try:
        make_base(base, size)
        make_edit(base, factors)
        edit = read_edit(factors)
        written = sum(path.stat().st_size for path in base.iterdir())
        say(f"{written / 1e9:.2f} GB in {len(list(base.glob('*.safetensors')))} shards")
        apply(base, edit, out)
        verified = verify(base, edit, out)
        shutil.rmtree(out)
        arms: dict[str, Callable[[Path], None]] = {
            "cp": lambda out: copy(base, out),
            "cp_and_sync": lambda out: copy_and_flush(base, out),
            "apply": lambda out: apply(base, edit, out),
            "transformers": lambda out: through_transformers(base, edit, out),
        }
        seconds, cpu = timed_rounds(arms, out, rounds)
        memory = {arm: peak_memory(arm, base, factors, out) for arm in ("apply", "transformers")}
    finally:
        shutil.rmtree(folder)
    ratio = paired_ratio(seconds["apply"], seconds["cp"])
    emit(
        "patch_checkpoint",
        n={"rounds": rounds, "gigabytes": round(written / 1e9, 2)},
        seconds={name: spread(values, 2) for name, values in seconds.items()},
        cpu_seconds={name: spread(values, 2) for name, values in cpu.items()},
        over_cp=ratio,
        over_cp_and_sync=paired_ratio(seconds["apply"], seconds["cp_and_sync"]),
        transformers_over_apply=paired_ratio(seconds["transformers"], seconds["apply"]),
        peak_mb_above_interpreter={arm: round(found["above_mb"], 1) for arm, found in memory.items()},
        exact_high_water_mark=all(found["exact"] for found in memory.values()),
        aim={"over_cp": AIM_RATIO, "peak_mb": AIM_MB},
        met=ratio["median"] <= AIM_RATIO and memory["apply"]["above_mb"] <= AIM_MB,
        verified=verified,
    )
    return None


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    typer.run(main)
