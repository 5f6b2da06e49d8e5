"""Tiny config-built models of every architecture family that is claimed: random weights, no files, milliseconds."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from steer2edit.models import LanguageModel

_SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# model type → settings that differ from _SMALL; a value of None removes the key.
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {"head_dim": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 12},  # head_dim ≠ hidden_size / heads
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
    "phi3": {},
    "olmo2": {},
    "granite": {"residual_multiplier": 0.5, "logits_scaling": 2.0},
    "smollm3": {},
    "cohere2": {"head_dim": 8, "sliding_window": 8},
    "stablelm": {"use_parallel_residual": True},
    "starcoder2": {"use_bias": True},
    "gpt_neox": {"num_key_value_heads": None},
    "falcon": {
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "bias": True,
        "num_key_value_heads": None,
    },
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "intermediate_size": None, "num_key_value_heads": None},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48, "n_positions": 128},
}
_GPT2_NAMES = {
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
}


def tiny_network(model_type: str, seed: int = 0, **changes: object) -> torch.nn.Module:
    """A random model of the family in float32, with weights (and biases) large enough that every site matters."""
    settings = {**_SMALL, **FAMILIES.get(model_type, {}), **changes}
    if model_type == "gpt2":
        settings = {k: v for k, v in settings.items() if k not in _GPT2_NAMES | {"max_position_embeddings"}}
    settings = {k: v for k, v in settings.items() if v is not None}
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.15)
            elif name.endswith("bias"):
                parameter.normal_(std=0.05)
    return network.eval()


def tiny_model(model_type: str = "llama", seed: int = 0, **changes: object) -> LanguageModel:
    """The same, wrapped, without a tokenizer."""
    return LanguageModel(tiny_network(model_type, seed, **changes), name=f"tiny-{model_type}")
