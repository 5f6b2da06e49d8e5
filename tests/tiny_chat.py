"""A small fast chat tokenizer and a model that fits it: no network, milliseconds.

Byte-level BPE in the manner of GPT-2, trained on a few sentences that make it merge across the places where a prompt
and its response meet (`"\\n\\n"`, `"\\n "`), with the ChatML template.
"""

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from families import tiny_network
from steer2edit.core import ClassMeans, SteeringVectors
from steer2edit.models import LanguageModel

END_OF_TEXT, BEGIN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SENTENCES = [
    "user\nassistant\nsystem\n",
    "I'm sorry, but I can't help with that.\n\nHere is what I can do:\n\n  - tell you the time\n  - tell you a joke\n",
    "How do I bake bread?\n\n\nMix the flour, the water and the salt. Then wait for an hour.\n ",
    "\n  one\n  two\n    three\n    four\n",
]
_VOCABULARY = 384  # 3 special tokens, 256 bytes, and as many merges as the sentences give


def chatml(prompt: str) -> str:
    """One user message as the template must render it, written out by hand."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


@cache
def _backend(trim_offsets: bool) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        min_frequency=1,
        special_tokens=[END_OF_TEXT, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(
    *, pad: bool = True, template: str | None = CHAT_TEMPLATE, trim_offsets: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer of its own for every call, so that a test may change it."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend(trim_offsets)),
        eos_token=END,
        **({"pad_token": END_OF_TEXT} if pad else {}),
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_chat_model(
    model_type: str = "llama", seed: int = 0, tokenizer: PreTrainedTokenizerFast | None = None, **changes: object
) -> LanguageModel:
    """A random model of the family whose vocabulary is the tokenizer's."""
    tokenizer = tokenizer or tiny_tokenizer()
    settings = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, **changes}
    if model_type == "gpt2":
        settings["n_positions"] = settings.pop("max_position_embeddings")
    return LanguageModel(tiny_network(model_type, seed, **settings), tokenizer, name=f"tiny-{model_type}")


def vectors_of(metadata: dict[str, Any]) -> SteeringVectors:
    """Vectors of one layer, made as the metadata say."""
    return SteeringVectors({}, metadata, block_outputs={0: ClassMeans(torch.ones(4), torch.zeros(4))})
