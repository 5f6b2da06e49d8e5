"""Models for benchmarks: one by name, or random weights of a given shape where a large model cannot be downloaded.

Speed depends on shapes and dtypes, not on what the weights say. Random weights are the same for the same seed and
device, so that several processes have one model. Their tokenizer has one token per byte.
"""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from steer2edit.models import LanguageModel, load_model
from steer2edit.models.reply import end_ids

SHAPES = {
    "7b": {  # Llama-2-7B
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
    "tiny": {  # for trying a script out
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 512,
        "max_position_embeddings": 1024,
    },
}
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def open_model(name: str, dtype: str, device: str, shape: str | None = None) -> LanguageModel:
    """The model called `name`, or random weights of a `shape`, in bfloat16 unless a dtype is given."""
    if shape is None:
        return load_model(name, dtype=dtype, device=device)
    if shape not in SHAPES:
        raise SystemExit(f"unknown --model-shape {shape!r}: {', '.join(SHAPES)}.")
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    precision = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    torch.manual_seed(0)
    with torch.device(where):
        network = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[shape]), dtype=precision)
    return LanguageModel(network, byte_tokenizer(), name=f"random weights of shape {shape}")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(_SPECIAL))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=_SPECIAL[2], pad_token=_SPECIAL[0])
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def never_ending(model: LanguageModel) -> None:
    """Let no reply end by itself, so that everything compared makes the same number of tokens."""
    ends = torch.tensor(end_ids(model), device=model.device)
    head: nn.Module = model.network.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, logits: logits.index_fill(-1, ends, -1e4))
