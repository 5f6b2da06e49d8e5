"""What a model predicts behind prompts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from steer2edit.models import EncodedResponse, LanguageModel, span_log_probabilities


def next_token_log_probabilities(model: LanguageModel, encoded: Sequence[Sequence[int]]) -> Tensor:
    """Log-distribution of the token behind each sequence [b, v]; hooks and edits in force apply."""
    rows = [EncodedResponse((*ids, ids[-1]), len(ids)) for ids in encoded]  # which token is there makes no difference
    return torch.cat(span_log_probabilities(model, rows))
