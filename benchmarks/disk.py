"""Vectors and an edit of a model that stays on the disk, under a limit of memory that it does not fit into.

Physics: a forward pass needs one layer at a time. With all batches waiting before each layer, a layer is read once for
all of them, so the disk is asked for (passes + reads of W) × the model's size, whatever the number of prompts: the time
is that over the disk's speed, or the arithmetic of the prompts, whichever is longer. Memory is one layer, the embedding
and the hidden states of all prompts (4 d bytes a token).

Compared with the same extraction and conversion in memory, each in a process of its own: vectors and edit must be equal
bit for bit, and the peak of the one on the disk (VmHWM, with the interpreter and torch) below half of the weights. So
much is also all that the kernel gives it (RLIMIT_DATA, on everything allocated); in memory, the same limit must end the
loading. Files are read rather than mapped in all of them, as transformers does on Windows: the limit counts a private
mapping as the whole file, touched or not, where the limit of a container counts what is in memory. And glibc is told to
give freed tensors back to the kernel; on its own it keeps pieces of them.

    python benchmarks/disk.py [--layers 28]
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import safetensors
from timing import emit, say

PROMPTS = 6
LIMIT = 0.5  # of the weights


def write_model(folder: Path, layers: int) -> int:
    """A random Llama in float32 with a vocabulary of bytes; returns the bytes of its weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(letters), hidden_size=1024, intermediate_size=4096, num_hidden_layers=layers,
        num_attention_heads=8, max_position_embeddings=512,
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    network.save_pretrained(folder, max_shard_size="500MB")
    return sum(parameter.nbytes for parameter in network.parameters())


def make_edit(folder: Path, device: str, limit: int) -> None:
    """In a process of its own: prints digests, peak memory and reads."""
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    opened = safetensors.safe_open
    safetensors.safe_open = lambda *names, **options: opened(*names, **{**options, "backend": "pread"})
    from accelerate.utils.offload import OffloadedWeightsLoader

    from steer2edit.editing import convert
    from steer2edit.method.hyperparameters import Hyperparameters
    from steer2edit.models import load_model
    from steer2edit.steering.contrast import Contrast, ContrastSet
    from steer2edit.steering.extract import extract

    reads: dict[str, int] = {}
    read = OffloadedWeightsLoader.__getitem__

    def counted(self, key):
        reads[key] = reads.get(key, 0) + 1
        return read(self, key)

    OffloadedWeightsLoader.__getitem__ = counted
    model = load_model(str(folder), dtype="float32", device=device)
    prompts = [f"Question {i}: how do I bake bread?" for i in range(PROMPTS)]
    pairs = [tuple((p, f"{answer} {p}") for p in prompts) for answer in ("I am sorry, I cannot", "Mix the flour with")]
    vectors = extract(model, ContrastSet("random", {"train": Contrast(*pairs)}, {}), batch_tokens=512)
    edit = convert(model, vectors, Hyperparameters(rho_attn=0.001, rho_mlp=0.001, alpha=0.5), force=True)
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024
    by_kind: dict[str, int] = {}
    for name, count in reads.items():
        kind = name.split(".", 3)[-1]
        by_kind[kind] = max(by_kind.get(kind, 0), count)
    print(json.dumps({"digests": [vectors.digest(), edit.digest()], "peak": peak, "reads": by_kind}))


def in_a_process(folder: str, device: str, limit: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `make_edit`, with its output."""
    say(f"{device}, {f'{limit} bytes' if limit else 'no limit'} ...")
    command = [sys.executable, __file__, "--child", folder, device, str(limit)]
    environment = {**os.environ, "STEER2EDIT_CACHE": f"{folder}/cache", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def result_of(done: subprocess.CompletedProcess[str]) -> dict:
    if done.returncode:
        raise SystemExit(f"WRONG: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--child", nargs=3, metavar=("FOLDER", "DEVICE", "LIMIT"))
    arguments = parser.parse_args()
    if arguments.child:
        folder, device, limit = arguments.child
        return make_edit(Path(folder), device, int(limit))
    with tempfile.TemporaryDirectory() as folder:
        weights = write_model(Path(folder), arguments.layers)
        limit = int(LIMIT * weights)
        memory = result_of(in_a_process(folder, "cpu"))
        disk = result_of(in_a_process(folder, "disk", limit))
        refused = in_a_process(folder, "cpu", limit)
    if memory["digests"] != disk["digests"]:
        raise SystemExit("WRONG: the vectors or the edits differ")
    if disk["peak"] > limit:
        raise SystemExit(f"WRONG: {disk['peak']} bytes at the peak, more than {limit}")
    if not refused.returncode or "memory does not suffice" not in refused.stderr:
        raise SystemExit(f"WRONG: in memory, the limit of {limit} bytes did not end it: {refused.stderr[-500:]}")
    peaks = {"cpu": memory["peak"], "disk": disk["peak"]}
    share = {device: round(peak / weights, 3) for device, peak in peaks.items()}
    emit(
        "disk", weights_bytes=weights, limit_bytes=limit, peak_bytes=peaks, peak_share=share, reads=disk["reads"],
        equal=True, in_memory_under_the_limit=refused.stderr.strip().splitlines()[-1],
    )  # fmt: skip


if __name__ == "__main__":
    main()
