"""A tiny checkpoint directory: a random model in bfloat16 and a tokenizer of whole words."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from families import tiny_network


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(92))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def save_checkpoint(
    directory: Path, dtype: torch.dtype = torch.bfloat16, family: str = "llama", **save: object
) -> torch.nn.Module:
    """Write the directory and return the network that is in it."""
    logging.disable_progress_bar()
    network = tiny_network(family)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:  # some entries that float16 cannot hold, or only as subnormals
                parameter[0, :4] = torch.tensor([1e-5, -3e-6, 1e-8, 1e-20])
    network = network.to(dtype)
    network.save_pretrained(directory, **save)
    word_tokenizer().save_pretrained(directory)
    return network
