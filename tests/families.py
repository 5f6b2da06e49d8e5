"""Tiny config-built models of every architecture family that is claimed: random weights, no files, milliseconds."""

import torch
from transformers import AutoConfig

from steer2edit.core import ClassMeans, SiteMeans
from steer2edit.models import LanguageModel, SiteModule
from steer2edit.models.loading import model_class

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
    # mixtures of experts
    "qwen3_moe": {"head_dim": 12, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 20,
        "mlp_only_layers": [0],
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
        "n_shared_experts": 1,
        "num_key_value_heads": 4,
    },
    "glm4_moe": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
        "head_dim": 8,
    },
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "residual_multiplier": 0.5},
    "granitemoeshared": {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 20},
    "llama4_text": {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 40,
        "moe_layers": [1, 2],
        "attn_temperature_tuning": False,
    },
    # hybrids
    "qwen3_next": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 20,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention", "conv"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "num_dense_layers": 1,
    },
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention", "mamba"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 20,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_expand": 2,
        "mamba_chunk_size": 8,  # a sequence is padded to a multiple of it
    },
    "falcon_h1": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_d_ssm": 64,
        "mamba_chunk_size": 8,
        "mamba_n_groups": 1,
        "head_dim": 8,
    },
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48, "n_positions": 128},
}
_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 16,
}
_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
}
_QWEN_IMAGE = {
    "image_token_id": 90,
    "video_token_id": 91,
    "vision_start_token_id": 92,
    "vision_end_token_id": 93,
}

# Multimodal models: model type → (settings of the language model in it, settings of the rest).
MULTIMODAL: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "gemma3": (
        {"model_type": "gemma3_text", **FAMILIES["gemma3_text"]},
        {
            "vision_config": {**_CLIP, "model_type": "siglip_vision_model"},
            "mm_tokens_per_image": 4,
            "image_token_index": 90,
            "boi_token_index": 91,
            "eoi_token_index": 92,
        },
    ),
    "llava": ({"model_type": "llama"}, {"vision_config": _CLIP, "image_token_index": 90}),
    "mistral3": (
        {"model_type": "mistral", "head_dim": 8},
        {"vision_config": {**_CLIP, "model_type": "pixtral"}, "image_token_index": 90},
    ),
    "qwen2_5_vl": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        {"vision_config": {**_QWEN_VISION, "window_size": 8, "fullatt_block_indexes": [0]}, **_QWEN_IMAGE},
    ),
    "qwen3_vl": (
        {"head_dim": 12, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}},
        {"vision_config": {**_QWEN_VISION, "deepstack_visual_indexes": [0]}, **_QWEN_IMAGE},
    ),
    "qwen3_vl_moe": (
        {
            **FAMILIES["qwen3_moe"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]},
        },
        {"vision_config": {**_QWEN_VISION, "deepstack_visual_indexes": [0]}, **_QWEN_IMAGE},
    ),
}
ALL_FAMILIES = (*FAMILIES, *MULTIMODAL)
# Families with a mixture of experts in some layer; in all but Llama 4, it runs through transformers' experts interface.
MIXTURES = (
    "qwen3_moe",
    "qwen2_moe",
    "mixtral",
    "olmoe",
    "gpt_oss",
    "deepseek_v3",
    "glm4_moe",
    "granitemoe",
    "granitemoeshared",
    "llama4_text",
    "qwen3_next",
    "lfm2_moe",
    "granitemoehybrid",
    "qwen3_vl_moe",
)
DENSE = tuple(family for family in FAMILIES if family not in MIXTURES)
_GPT2_NAMES = {
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
}


def tiny_network(model_type: str, seed: int = 0, **changes: object) -> torch.nn.Module:
    """A random model of the family in float32, with weights (and biases) large enough that every site matters."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **_settings(model_type, changes))
    network = model_class(config).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.15)
            elif name.endswith("bias"):
                parameter.normal_(std=0.05)
    return network.eval()


def _settings(model_type: str, changes: dict[str, object]) -> dict[str, object]:
    if model_type in MULTIMODAL:
        language, rest = MULTIMODAL[model_type]
        return {"text_config": {**_SMALL, **language, **changes}, **rest}
    settings = {**_SMALL, **FAMILIES.get(model_type, {}), **changes}
    if model_type == "gpt2":
        settings = {k: v for k, v in settings.items() if k not in _GPT2_NAMES | {"max_position_embeddings"}}
    return {k: v for k, v in settings.items() if v is not None}


def tiny_model(model_type: str = "llama", seed: int = 0, **changes: object) -> LanguageModel:
    """The same, wrapped, without a tokenizer."""
    return LanguageModel(tiny_network(model_type, seed, **changes), name=f"tiny-{model_type}")


def random_site_means(module: SiteModule, generator: torch.Generator) -> SiteMeans:
    """Means of one site, drawn at random; each of its experts was given a hundred tokens."""

    def means(size: int) -> ClassMeans:
        return ClassMeans(torch.randn(size, generator=generator), torch.randn(size, generator=generator))

    (d, m), experts = module.shape, len(module.projections)
    output, inputs = means(d), means(m)
    if module.sizes is None:
        return SiteMeans(output, inputs)
    tokens = ClassMeans(torch.full((experts,), 50.0), torch.full((experts,), 50.0))
    return SiteMeans(output, inputs, tokens)
