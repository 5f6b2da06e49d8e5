"""How large a batch may be to begin with, from the device's memory and the model's shape."""

import os

import torch

from steer2edit.models import GENERATION_TOKENS, LanguageModel, TokenBudget

_SHARE = 0.5  # of the memory that the weights leave; the rest is for fragmentation and for others
_CPU_SCORING_TOKENS = 2048  # larger batches gain nothing on a CPU
_WIDE_COPIES = 3  # float32 rows [tokens, vocabulary] alive at once while scoring: logits, log-softmax, divergence


def generation_budget(model: LanguageModel) -> TokenBudget:
    """Tokens of a generation batch: its key-value cache and one layer's activations stay within memory."""
    config = model.network.config.get_text_config()
    width = int(config.hidden_size)
    layers = int(getattr(config, "num_hidden_layers", 1))
    per_token = (2 * layers + 16) * width * model.dtype.itemsize
    return TokenBudget(_tokens(model, per_token, GENERATION_TOKENS))


def scoring_budget(model: LanguageModel) -> TokenBudget:
    """Tokens of a scoring batch: the distributions over the vocabulary stay within memory."""
    per_token = _WIDE_COPIES * 4 * int(model.network.config.get_text_config().vocab_size)
    return TokenBudget(_tokens(model, per_token, _CPU_SCORING_TOKENS))


def _tokens(model: LanguageModel, bytes_per_token: int, on_cpu: int) -> int:
    """It goes by the memory that the weights' devices have, not what is free: the same run makes the same batches."""
    if model.device.type == "cuda":
        devices = {p.device for p in model.network.parameters() if p.device.type == "cuda"}
        memory = sum(torch.cuda.get_device_properties(device).total_memory for device in devices)
        most = 64 * on_cpu
    else:
        memory = _physical_memory()
        most = on_cpu
    weights = sum(p.numel() * p.element_size() for p in model.network.parameters())
    room = max(0.0, _SHARE * (memory - weights))
    return int(min(most, max(1, room // bytes_per_token)))


def _physical_memory() -> int:
    """Bytes of main memory; 8 GB where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 8 << 30
