"""A tiny twin of a model: the same architecture from the same config, with every size small and random weights.

What an architecture is cannot be observed where weights are not in memory; it can be on its twin. No architecture is
named in the rules: they go by what config attributes are called, and all sizes of a kind become one number, so that
those which must agree do.
"""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

WIDTH, HEADS, HEAD_WIDTH, VOCABULARY = 64, 4, 16, 128

_RULES: tuple[tuple[str, int], ...] = (
    # the first that fits the whole name counts; the number is the largest that is left
    (r".*token_(id|index)s?|.*_ids?|.*version.*", 0),
    (r".*vocab.*size.*|n_vocab|.*vocab_size|num_codebooks?_size", VOCABULARY),
    (r".*topk_group|.*n_group|.*expert_group.*|num_expert_groups?", 1),
    (r".*experts?_(per_tok|per_token|k)|.*top_?k.*|moe_k|num_selects.*", 2),
    (r"(n_|num_)?.*shared_experts?|.*num_shared.*", 1),
    (r".*(num|n)_.*experts.*|num_experts|n_experts|moe_num_experts|num_local_experts|.*num_zero_experts", 4),
    (r"mamba.*(n|num)_heads|.*ssm.*num_heads|n_mamba_heads", 8),
    (r".*(num|n)_(key_value|kv|query)_.*(heads|groups)|.*multi_query_group_num|num_key_value_heads.*|n_head_kv", 2),
    (r".*linear_num_key_heads", 2),
    (r".*mamba_n_groups|n_groups|mamba_ngroups|ssm_n_groups", 1),
    (r".*(num|n)_.*heads?|.*num_heads|n_head|encoder_attention_heads|decoder_attention_heads|.*attention_heads", HEADS),
    (r"qk_head_dim|attention_head_dim", 2 * HEAD_WIDTH),
    (r"attention_hidden_size", 2 * WIDTH),
    (r".*rotary_dim", 8),
    (r".*d_ssm", 2 * WIDTH),
    (r".*(head_dim|head_size|d_head|headdim|d_kv|kv_channels|v_head_dim|key_dim|value_dim).*", HEAD_WIDTH),
    (r".*lora.*(rank|dim)|.*_rank|.*time_step_rank|.*low_rank.*", 16),
    (r"first_k_dense_replace|num_dense_layers|.*num_first_dense.*", 1),
    (r".*(d_state|state_size|ssm_state).*", 8),
    (r".*(d_conv|conv_kernel|kernel_size|conv_l_cache|expand|stride|temporal_patch_size|spatial_merge_size).*", -1),
    (r".*chunk_size.*", 8),
    (r".*(window|block_size|block_length|compress|index_topk|local_size).*", 8),
    (r".*(intermediate|ffn|inner|d_ff|mlp|ff_dim|feed_forward).*(size|dim)?.*", 48),
    (r"image_size|.*crop_size|.*_resolution", 32),
    (r"patch_size", 8),
    (r".*(hidden|embed|d_model|n_embd|width|dim|channels).*", WIDTH),
    (r".*position.*|n_ctx|n_positions|max_seq_len.*|.*max_length", 256),
    (r"depth|.*vision.*layers|.*encoder_layers", 1),
)  # fmt: skip
LAYER_COUNTS = r"num_hidden_layers|n_layers?|num_layers|decoder_layers|num_blocks"


def tiny_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of a config of any architecture with small sizes; those of one kind are the same wherever they stand.

    Its other settings (how many layers there are, which of them are of which kind, norms, biases) stay.
    """
    tiny = copy.deepcopy(config)
    for part in config_parts(tiny):
        own = copy.deepcopy(vars(part).get("_heterogeneity_spec"))
        if own is not None:
            part.per_layer_config = None
        for name, small in _all_small(vars(part)).items():
            setattr(part, name, small)
        if hasattr(part, "qk_rope_head_dim") and (rotated := _rotated(vars(part).get("rope_parameters"))):
            part.head_dim = int(HEAD_WIDTH / rotated)
        if own is not None:
            usual = vars(part)  # a layer's own number stays another than the usual one
            part.per_layer_config = {
                i: {k: 2 * v if v == usual.get(k) and isinstance(v, int) else v for k, v in _all_small(table).items()}
                for i, table in own.per_layer_overrides.items()
            }
    return tiny


def tiny_network(config: PreTrainedConfig, build: Callable[..., Any], seed: int = 0) -> PreTrainedModel:
    """A model in float32 whose random weights and biases are large enough to matter, and whose gates are open.

    transformers raises an Exception of any kind where a config's sizes do not fit together.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network: PreTrainedModel = build(config, dtype=torch.float32)
        for name, parameter in network.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.15)
            elif name.endswith("bias"):
                parameter.normal_(std=0.05)
            elif not parameter.any():
                parameter.normal_(std=0.5)
    return network.eval()


def tiny_twin(network: PreTrainedModel) -> tuple[PreTrainedModel | None, str]:
    """(a tiny model of the same class and with as many layers, why there is none)."""
    try:
        return tiny_network(tiny_config(network.config), type(network)._from_config), ""
    except Exception as error:  # configs raise what they like
        return None, " ".join(str(error).split())[:200]


def config_parts(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """A config with those in it."""
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(part for one in inner for part in config_parts(one))]


def _rotated(rope: Any) -> float | None:
    """Which part of a head is rotated, if that is not all of it; the same for all kinds of layers."""
    if not isinstance(rope, dict):
        return None
    return rope.get("partial_rotary_factor") or next(filter(None, map(_rotated, rope.values())), None)


def _all_small(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with small sizes; there are as many key heads as heads where there were."""
    heads = {settings.get(name) for name in ("num_attention_heads", "n_head", "num_heads")}
    return {
        name: min(value or HEADS, HEADS) if name == "num_key_value_heads" and value in heads else _small(name, value)
        for name, value in settings.items()
        if not name.startswith("_") and not isinstance(value, bool) and not re.fullmatch(LAYER_COUNTS, name)
    }


def _small(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        small = {key: _small(str(key), item) for key, item in value.items()}
        half = int(HEAD_WIDTH / 2 * value.get("partial_rotary_factor", 1))
        if sum(value.get("mrope_section", ())) > half:  # the axes of an image share the rotated half of a head
            small["mrope_section"] = [half // 4, half // 2 - half // 8, half - half // 4 - half // 2 + half // 8]
        return small
    limit = next((limit for rule, limit in _RULES if re.fullmatch(rule, name)), -1)
    if limit == -1 or isinstance(value, bool):
        return value
    if isinstance(value, list) and all(type(item) is int for item in value):
        return value if limit == 0 else [min(item, limit) for item in value]
    if not isinstance(value, int):
        return value
    return value % VOCABULARY if limit == 0 else min(value, limit)
