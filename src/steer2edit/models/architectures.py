"""Every text-generation architecture of the installed transformers, tried on a tiny model; the table in the docs.

`python -m steer2edit.models.architectures` prints the table of docs/architectures.md.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from steer2edit.core import BLOCKS
from steer2edit.models.layout import Layout
from steer2edit.models.loading import model_class
from steer2edit.models.sites import find_sites
from steer2edit.models.twin import tiny_config, tiny_network

_LAYERS = {"zamba": 8, "zamba2": 13}  # the weights of their attention are shared by the layers that have one
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

_ARGUMENTS: dict[str, dict[str, Any]] = {
    # what a default config leaves open
    "chameleon": {"vocabulary_map": {"<image>": 90}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8}},
    "deepseek_ocr2": {
        "text_config": {
            "mlp_layer_types": ["dense", *["sparse"] * 11],
            "num_hidden_layers": 12,
            "num_experts_per_tok": 2,
        }
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "1/2"},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_vl": {"text_config": {"head_dim": 16}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 16},
    "mistral_large4": {"text_config": {"num_hidden_layers": 3}},
    "step3p7": {"text_config": {"sliding_window": 8}},
}
_MROPE = {"text_config.rope_parameters": {**_ROPE, "mrope_section": [2, 3, 3]}}
_SETTINGS: dict[str, dict[str, Any]] = {
    # sizes that only fit together so
    "bamba": {"attn_layer_indices": [1]},
    "falcon_h1": {"mamba_d_head": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba2": {"num_heads": 8},
    "reformer": {"is_decoder": True},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"hybrid_layer_ids": [6, 12]},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 92, **_MROPE},
    **dict.fromkeys(("glm46v", "glm4v", "glm_ocr", "glmga", "paddleocr_vl", "qwen2_vl", "qwen2_5_vl"), _MROPE),
    "glm4v_moe": {"text_config.rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}},
    "ernie4_5_vl_moe": {"text_config.rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]}},
    "hunyuan_vl": {"text_config.rope_parameters": {**_ROPE, "mrope_section": [2, 3, 3]}},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 92},
}
_NEEDS_IMAGE = "takes no text without an image, or what stands for one"
_STREAMS = "several residual streams that are mixed (hyper-connections, AltUp)"
_TIMM = "its vision tower needs timm and Pillow"
_SSM = "no component: its only mixer is Mamba, whose projection PEFT does not adapt"
_ATTENDS = "its layers attend to the outputs of earlier ones, which replace the stream"
_DRAFTS = "drafts for another model, whose states it reads"
REASONS: dict[str, str] = {
    **dict.fromkeys(("blip", "blip-2", "idefics", "instructblip", "instructblipvideo", "kosmos-2"), _NEEDS_IMAGE),
    **dict.fromkeys(("deepseek_v4", "glm5_next", "hy_v4", "gemma3n_text", "qwen4_exp", "qwen4_exp_text"), _STREAMS),
    **dict.fromkeys(("fast_vlm", "gemma3n", "perception_lm"), _TIMM),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba"), _SSM),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), _DRAFTS),
    **dict.fromkeys(("inkling2", "inkling2_text"), _ATTENDS),
    **dict.fromkeys(("musicgen", "musicgen_melody"), "an encoder-decoder, of sound"),
    **dict.fromkeys(("dots3_note", "dots3_note_text"), "no tiny model of it is made by these rules"),
    "blt": "three stacks of layers, over bytes and over patches",
    "cpmant": "puts prompt tokens of its own before the text",
    "diffusion_gemma": "denoises a text as a whole",
    "evolla": "transformers loads it as no text generator",
    "jetmoe": "its experts, of the attention too, do not run through transformers' experts interface",
    "muse_spark": "gates multiply the residual stream by what depends on the token",
    "pi0": "moves a robot",
    "reformer": "two residual streams (reversible layers)",
    "rwkv": "no component: its mixers have no module that writes alone",
    "xlm": "its layers are no modules of their own",
    "xlnet": "two streams of attention, tokens before rows",
    "zamba": "no component: what its layers add is Mamba-1's, which has no heads",
}
"""Why an architecture cannot be edited, or cannot be tried, by model type."""


def architectures() -> list[str]:
    """Model types that generate text, language models in multimodal ones included, without encoder-decoders."""
    names = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    return sorted(name for name in names if not getattr(CONFIG_MAPPING[name], "is_encoder_decoder", False))


def tiny_architecture(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random tiny model of an architecture, made from its default config.

    Raises:
        Exception: of any kind, where transformers cannot make one.
    """
    config: PreTrainedConfig = CONFIG_MAPPING[model_type](**_ARGUMENTS.get(model_type, {}))
    config = tiny_config(config, _LAYERS.get(model_type, 3))
    for path, value in _SETTINGS.get(model_type, {}).items():
        *parents, name = path.split(".")
        setattr(reduce(getattr, parents, config), name, value)
    return tiny_network(config, model_class(config).from_config, seed)


def architecture_table() -> str:
    """Two Markdown tables: what is found in the architectures that resolve, and why the others do not."""
    alike: dict[tuple[str, ...], list[str]] = {}
    refused: dict[str, list[str]] = {}
    for model_type in architectures():
        if model_type in REASONS:
            refused.setdefault(REASONS[model_type], []).append(model_type)
        else:
            layout = find_sites(tiny_architecture(model_type)).layout
            alike.setdefault(tuple(_cells(layout)), []).append(model_type)
    found = [
        (_names(types), *cells) for cells, types in sorted(alike.items(), key=lambda item: (-len(item[1]), item[1]))
    ]
    columns = ("model types", "attention", "state-space mixer", "MLP", "experts", "left out")
    count = sum(map(len, alike.values()))
    yes = f"{count} of {count + sum(map(len, refused.values()))} resolve:\n\n" + _table(columns, found)
    return yes + "\n" + _table(("model types", "why not"), [(_names(types), why) for why, types in refused.items()])


def _cells(layout: Layout) -> Iterator[str]:
    yield from (_names(layout.paths(block)) for block in BLOCKS)
    experts = layout.experts
    yield "–" if experts is None else f"`{experts.module}`" + (f", shared `{experts.shared}`" if experts.shared else "")
    yield "; ".join(f"`{path}`: {why}" for path, why in layout.reasons.items()) or "–"


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "–"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (columns, ["---"] * len(columns), *rows)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    print(architecture_table(), end="")
