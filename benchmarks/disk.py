"""Vectors of a model that stays on the disk: peak memory, how often weights are read, and whether they are the same.

Physics: a forward pass needs one layer at a time. With all batches waiting before each layer, a layer is read once for
all of them, so the disk is asked for (passes + reads of W) × the model's size, whatever the number of prompts: the time
is that over the disk's speed, or the arithmetic of the prompts, whichever is longer. Memory is one layer, the embedding
and the hidden states of all prompts (4 d bytes a token).

Compared with the same extraction in memory, each in a process of its own: the vectors must be equal bit for bit, and
the peak of the one on the disk (VmHWM, with the interpreter, torch and mapped files) below half of the weights.

    python benchmarks/disk.py [--layers 28]
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import emit

PROMPTS = 6
MODES = ("cpu", "disk")


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


def extract_vectors(folder: Path, device: str) -> None:
    """In a process of its own: prints digest, peak memory and reads."""
    from accelerate.utils.offload import OffloadedWeightsLoader

    from steer2edit.models import load_model
    from steer2edit.steering import ContrastSet, extract
    from steer2edit.steering.contrast import Contrast

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
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024
    by_kind: dict[str, int] = {}
    for name, count in reads.items():
        kind = name.split(".", 3)[-1]
        by_kind[kind] = max(by_kind.get(kind, 0), count)
    print(json.dumps({"digest": vectors.digest(), "peak": peak, "reads": by_kind}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "DEVICE"))
    arguments = parser.parse_args()
    if arguments.child:
        folder, device = arguments.child
        return extract_vectors(Path(folder), device)
    with tempfile.TemporaryDirectory() as folder:
        weights = write_model(Path(folder), arguments.layers)
        found = {}
        for device in MODES:
            print(f"extracting, {device} ...", file=sys.stderr)
            command = [sys.executable, __file__, "--child", folder, device]
            environment = {**os.environ, "STEER2EDIT_CACHE": f"{folder}/cache"}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            found[device] = json.loads(done.stdout.splitlines()[-1])
    if found["cpu"]["digest"] != found["disk"]["digest"]:
        raise SystemExit("WRONG: the vectors differ")
    peaks = {device: result["peak"] for device, result in found.items()}
    if peaks["disk"] > weights / 2:
        raise SystemExit(f"WRONG: {peaks['disk']} bytes at the peak, more than half of {weights}")
    share = {device: round(peak / weights, 3) for device, peak in peaks.items()}
    emit("disk", weights_bytes=weights, peak_bytes=peaks, peak_share=share, reads=found["disk"]["reads"], equal=True)


if __name__ == "__main__":
    main()
