"""A model that stands for one where none is loaded: its prompts can be encoded, and that is all it is for."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steer2edit.models.language_model import LanguageModel

_TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} . {% endfor %}{% if add_generation_prompt %}reply {% endif %}"
)


def stand_in_model() -> LanguageModel:
    """A network of one layer whose tokens are letters, with a context that has room for everything."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, chat_template=_TEMPLATE)
    config = LlamaConfig(
        vocab_size=len(alphabet), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=1 << 20,
    )  # fmt: skip
    return LanguageModel(LlamaForCausalLM(config), tokenizer, "a model")
