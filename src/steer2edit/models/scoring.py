"""Log-distributions of the next token: over given responses, and behind a prompt.

Shapes: s = span positions of all rows of a batch, v = vocabulary.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steer2edit.models.batching import pad
from steer2edit.models.chat import EncodedResponse
from steer2edit.models.language_model import LanguageModel


@torch.inference_mode()
def span_log_probabilities(model: LanguageModel, responses: Sequence[EncodedResponse]) -> list[Float[Tensor, "_ v"]]:
    """Log-distribution of the next token at every span position, one [length, v] tensor per response, float32.

    The model runs as it is: hooks and edits in force when this is called apply. Logits are computed at span
    positions only.
    """
    return span_distributions(model, responses)


def span_distributions(model: LanguageModel, responses: Sequence[EncodedResponse]) -> list[Float[Tensor, "_ v"]]:
    """`span_log_probabilities`, with gradients where they are enabled."""
    ids, mask = pad([response.ids for response in responses], pad_id=0, device=model.device)
    first = min(response.span.start for response in responses)
    positions = torch.arange(first, ids.shape[1] - 1)  # on the CPU: the hidden states may be on another device
    logits = model.network(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=positions).logits
    return [
        logits[i, response.span.start - first : response.span.stop - first].float().log_softmax(dim=-1)
        for i, response in enumerate(responses)
    ]


@torch.inference_mode()
def next_token_log_probabilities(model: LanguageModel, encoded: Sequence[Sequence[int]]) -> Float[Tensor, "b v"]:
    """Log-distribution of the token behind each sequence, float32. Hooks and edits in force apply."""
    ids, mask = pad(encoded, pad_id=0, device=model.device, left=True)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits: Tensor = model.network(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1
    ).logits
    return logits[:, -1].float().log_softmax(dim=-1)


def token_log_probabilities(log_probabilities: Float[Tensor, "t v"], response: EncodedResponse) -> Float[Tensor, " t"]:
    """Log-probability of each of a response's own tokens."""
    targets = torch.tensor(response.response_ids, device=log_probabilities.device)
    return log_probabilities.gather(1, targets[:, None])[:, 0]
