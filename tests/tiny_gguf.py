"""A tiny random Llama as a GGUF file, written as llama.cpp's own converter writes one."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch

from families import tiny_network
from tiny_chat import CHAT_TEMPLATE, tiny_tokenizer

QUANT = gguf.GGMLQuantizationType
_LAYER = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def tiny_llama(rows: int | None = None, intermediate_size: int = 64) -> torch.nn.Module:
    vocab = rows or len(tiny_tokenizer())
    return tiny_network("llama", intermediate_size=intermediate_size, vocab_size=vocab, max_position_embeddings=512)


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of query and key heads in llama.cpp's order: the two halves of a head take turns."""
    return weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(path: Path, network: torch.nn.Module, kind: QUANT = QUANT.F32, architecture: str = "llama") -> None:
    """The network and the tokenizer of `tiny_chat`, matrices in a type, norms in F32."""
    config = network.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer)
    state = network.state_dict()
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = {"token_embd": state["model.embed_tokens.weight"], "output_norm": state["model.norm.weight"]}
    if not config.tie_word_embeddings:
        tensors["output"] = state["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        for theirs, ours in _LAYER.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            tensors[f"blk.{layer}.{theirs}"] = permuted(weight, heads[theirs]) if theirs in heads else weight
    for name, weight in tensors.items():
        own = kind if weight.ndim == 2 else QUANT.F32
        writer.add_tensor(f"{name}.weight", gguf.quantize(weight.numpy().astype(np.float32), own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokenizer = tiny_tokenizer()
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])])
    writer.add_token_types([3 if i in special else 1 for i in range(len(tokenizer))])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
