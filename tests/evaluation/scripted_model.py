"""A model whose every reply is known: each token names its successor, and the last character of a prompt begins.

Both blocks write nothing, so the last layer sees the embedding of the current token alone. Embeddings are unit vectors
on axes of their own, the final norm multiplies by √h (h = width), so a head weight w on the axis of token t adds
√h · w to its successor's logit, and every other logit is 0. One more axis is nobody's: steering along it moves one
chosen token, the `lure`, up by strength · √h / √(1 + strength²) · w.
"""

import itertools
import math
from collections.abc import Mapping

import numpy as np
import torch

from families import tiny_network
from steer2edit.core import SteeringVectors
from steer2edit.models import LanguageModel
from tiny_chat import END, tiny_tokenizer

WIDTH = 64
LURE_AXIS = WIDTH - 1
LAST_SITE = "L2.mlp"


class ScriptedModel:
    """The model, and by-hand values of its log-probabilities.

    Args:
        script: current token → (next token, head weight w); a token is one character, or `END`.
        lure: (token, head weight) that the extra axis promotes.
    """

    def __init__(self, script: Mapping[str, tuple[str, float]], lure: tuple[str, float]) -> None:
        self.tokenizer = tiny_tokenizer(template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
        self.axes = {self.token(text): axis for axis, text in enumerate(script)}
        self.head = np.zeros((len(self.tokenizer), WIDTH))
        for text, (successor, weight) in script.items():
            self.head[self.token(successor), self.axes[self.token(text)]] = weight
        self.head[self.token(lure[0]), LURE_AXIS] = lure[1]
        self.model = LanguageModel(self._network(), self.tokenizer, name="scripted")

    def token(self, text: str) -> int:
        (token,) = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return int(token)

    def _network(self) -> torch.nn.Module:
        network = tiny_network(
            "llama",
            vocab_size=len(self.tokenizer),
            hidden_size=WIDTH,
            max_position_embeddings=256,
            eos_token_id=self.token(END),
            tie_word_embeddings=False,
            rms_norm_eps=1e-12,  # so that the final norm is exactly √h on a unit vector
        )
        with torch.no_grad():
            network.model.embed_tokens.weight.zero_()
            for token, axis in self.axes.items():
                network.model.embed_tokens.weight[token, axis] = 1
            network.lm_head.weight.copy_(torch.from_numpy(self.head))
            for layer in network.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
        return network

    def vectors(self) -> SteeringVectors:
        """Steering towards the lure, at the last layer."""
        v = torch.zeros(WIDTH)
        v[LURE_AXIS] = 1
        return SteeringVectors.from_mapping({LAST_SITE: v})

    def log_probabilities(self, current: str, strength: float = 0.0) -> np.ndarray:
        """Log-distribution of the token after `current`, in float64."""
        residual = np.zeros(WIDTH)
        if self.token(current) in self.axes:
            residual[self.axes[self.token(current)]] = 1
        residual[LURE_AXIS] = strength
        length = math.sqrt(float(residual @ residual))
        logits = self.head @ residual * (math.sqrt(WIDTH) / length if length else 0.0)
        return logits - np.log(np.exp(logits).sum())

    def nll(self, tokens: str | list[str], strength: float = 0.0) -> float:
        """Mean negative log-likelihood of every token but the first."""
        pairs = itertools.pairwise(tokens)
        return float(np.mean([-self.log_probabilities(a, strength)[self.token(b)] for a, b in pairs]))

    def kl(self, tokens: str | list[str], strength: float) -> float:
        """Mean KL(base ‖ steered) at every token but the last."""
        divergences = []
        for current in tokens[:-1]:
            before, after = self.log_probabilities(current), self.log_probabilities(current, strength)
            divergences.append(float((np.exp(before) * (before - after)).sum()))
        return float(np.mean(divergences))
