"""Every text-generation architecture of the installed transformers, tried on a tiny model; the table in the docs.

`python tests/architectures.py` prints the table of docs/architectures.md.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from steer2edit.models.twin import LAYER_COUNTS, config_parts, tiny_config, tiny_network

_LAYERS = {"zamba": 8, "zamba2": 13}  # the weights of their attention are shared by the layers that have one
_INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
_VISION = {"model_type": "clip_vision_model"}  # in place of one that needs timm and Pillow
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
    "emu3": {"vocabulary_map": {"<image>": 90}},
    "fast_vlm": {"vision_config": _VISION},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots3_note": {"text_config": {"layer_types": ["indexed_attention"] * 46}},
    "dots3_note_text": {"layer_types": ["indexed_attention"] * 46},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "1/2"},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "hunyuan_vl": {"text_config": {"head_dim": 16}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 16},
    "mistral_large4": {"text_config": {"num_hidden_layers": 3}},
    "perception_lm": {"vision_config": {**_VISION, "model_args": {"embed_dim": 64}}},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "step3p7": {"text_config": {"sliding_window": 8}},
}
_MROPE = {"text_config.rope_parameters": {**_ROPE, "mrope_section": [2, 3, 3]}}
_SETTINGS: dict[str, dict[str, Any]] = {
    # sizes that only fit together so
    "bamba": {"attn_layer_indices": [1]},
    "falcon_h1": {"mamba_d_head": 16},
    "dots3_note": {"audio_config.adapter_input_size": 64},
    "glm5_next": {"text_config.index_kpool": 2},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba2": {"num_heads": 8},
    "molmo2": {"adapter_config.vision_feature_layer": [2, 1]},
    "muse_spark": {"audio_config.num_hidden_layers": 4},
    "reformer": {"is_decoder": True},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"hybrid_layer_ids": [6, 12]},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 92, **_MROPE},
    **dict.fromkeys(("glm46v", "glm4v", "glm_ocr", "glmga", "paddleocr_vl", "qwen2_vl", "qwen2_5_vl"), _MROPE),
    "glm4v_moe": {"text_config.rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}},
    "ernie4_5_vl_moe": {"text_config.rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]}},
    "hunyuan_vl": {"text_config.rope_parameters": {**_ROPE, "mrope_section": [2, 3, 3]}},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 92},
}
_NEEDS_IMAGE = "takes no text without an image"
_MAMBA = "no component: its only mixer is Mamba, whose projection PEFT does not adapt"
_ATTENDS = "its layers attend to the outputs of earlier ones, which replace the stream"
OTHERS: dict[str, str] = {
    **dict.fromkeys(("blip", "blip-2", "idefics", "instructblip", "instructblipvideo", "kosmos-2"), _NEEDS_IMAGE),
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"), "drafts for another model, whose states it reads"
    ),
    **dict.fromkeys(("musicgen", "musicgen_melody"), "an encoder-decoder, of sound"),
    "diffusion_gemma": "denoises a text as a whole",
    "evolla": "answers about proteins; no auto class of transformers loads it",
    "pi0": "moves a robot",
    "shieldgemma2": "says whether an image is harmful",
    "xlnet": "predicts words in any order, in two streams of attention",
}
"""What transformers lists among text generators and is no decoder that takes and writes text, by model type."""
REASONS: dict[str, str] = {
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba"), _MAMBA),
    **dict.fromkeys(("inkling2", "inkling2_text"), _ATTENDS),
    "blt": "three stacks of layers, over bytes and over patches",
    "cpmant": "puts prompt tokens of its own before the text",
    "gemma3n": "its vision tower needs timm and Pillow; the language model in it is gemma3n_text",
    "jetmoe": "its experts, of the attention too, do not run through transformers' experts interface",
    "reformer": "two residual streams that take turns (reversible layers)",
    "rwkv": "divides its own weights as it runs",
    "xlm": "its layers are no modules of their own",
}
"""Why an architecture cannot be edited, or cannot be tried, by model type."""


def architectures() -> list[str]:
    """Model types of decoders that generate text, language models in multimodal ones included."""
    names = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES} - OTHERS.keys()
    return sorted(name for name in names if not getattr(CONFIG_MAPPING[name], "is_encoder_decoder", False))


def tiny_architecture(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random tiny model of an architecture, made from its default config.

    Raises:
        Exception: of any kind, where transformers cannot make one.
    """
    config: PreTrainedConfig = CONFIG_MAPPING[model_type](**_ARGUMENTS.get(model_type, {}))
    for part in config_parts(config):
        _leave_layers(part, _LAYERS.get(model_type, 3))
    config = tiny_config(config)
    for path, value in _SETTINGS.get(model_type, {}).items():
        *parents, name = path.split(".")
        setattr(reduce(getattr, parents, config), name, value)
    config = type(config).from_dict(config.to_dict())  # as it comes back from a file: what follows from sizes does
    return tiny_network(config, model_class(config).from_config, seed)


def _leave_layers(part: PreTrainedConfig, layers: int) -> None:
    """Leave so many layers of a config, the first of every kind among them; what there is for each layer follows."""
    own = copy.deepcopy(vars(part).get("_heterogeneity_spec"))
    if own is not None:
        part.per_layer_config = None
    places: dict[int, int] | None = None
    for name, count in list(vars(part).items()):
        if not re.fullmatch(LAYER_COUNTS, name) or not isinstance(count, int) or count <= layers:
            continue
        lists = {key: item for key, item in vars(part).items() if isinstance(item, list) and len(item) == count}
        kinds = [str([item[i] for item in lists.values()]) for i in range(count)]
        first = {kind: i for i, kind in reversed(list(enumerate(kinds)))}
        left = sorted(sorted(range(count), key=lambda i: (first[kinds[i]] != i, i))[: max(layers, len(first))])
        for key, item in lists.items():
            setattr(part, key, [item[i] for i in left])
        setattr(part, name, len(left))
        places = {old: new for new, old in enumerate(left)}
    if own is not None:
        part.per_layer_config = {
            i if places is None else places[i]: settings
            for i, settings in own.per_layer_overrides.items()
            if places is None or i in places
        }


def architecture_table() -> str:
    """Markdown tables: what is found in the architectures that resolve, why others do not, and what is none."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for model_type in architectures():
        if model_type not in REASONS:
            layout = find_sites(tiny_architecture(model_type)).layout
            alike.setdefault(tuple(_cells(layout)), []).append(model_type)
    found = [
        (_names(types), *cells) for cells, types in sorted(alike.items(), key=lambda item: (-len(item[1]), item[1]))
    ]
    columns = ("model types", "attention", "state-space mixer", "MLP", "experts", "left out")
    count = sum(map(len, alike.values()))
    share = f"{count} of {count + len(REASONS)} resolve ({count / (count + len(REASONS)):.1%}):"
    parts = (share, _table(columns, found), "These do not:", _reasons(REASONS), f"{_NO_DECODERS}:", _reasons(OTHERS))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


_NO_DECODERS = "And these, which transformers lists among them, are no decoders that take and write text"


def _reasons(reasons: Mapping[str, str]) -> str:
    alike: dict[str, list[str]] = {}
    for model_type, why in sorted(reasons.items()):
        alike.setdefault(why, []).append(model_type)
    return _table(("model types", "why not"), [(_names(types), why) for why, types in alike.items()])


def _cells(layout: Layout) -> Iterator[str]:
    yield from (_names(getattr(layout, block)) for block in BLOCKS)
    experts = layout.experts
    yield "–" if experts is None else f"`{experts.module}`" + (f", shared `{experts.shared}`" if experts.shared else "")
    yield "; ".join(f"`{path}`: {why}" for path, why in layout.left_out.items()) or "–"


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "–"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (columns, ["---"] * len(columns), *rows)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    print(architecture_table(), end="")
