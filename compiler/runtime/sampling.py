"""Which token comes next. Random numbers are a function of (seed, request, step): of nothing else, not of the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ir.errors import UsageError

_WORD = 1 << 64


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose a token.

    Attributes:
        temperature: logits are divided by it; 0: always the likeliest token.
        top_k: only so many of the likeliest; 0: all.
        top_p: only the likeliest that together have this probability (2.2 of 1904.09751); 1: all.
        seed: of the random numbers.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: says which.
        """
        if not (0 <= self.temperature < math.inf):
            raise UsageError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must be above 0, and 1 (all tokens) at most")
        if not 0 <= self.seed < _WORD:
            raise UsageError(f"seed is {self.seed}; it must be between 0 and 2**64 - 1")

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0

    def probabilities(self, logits: Tensor) -> Tensor:
        """float64 [..., vocabulary], after temperature, top-k and top-p; ties at the border stay in."""
        scaled = logits.double() / self.temperature
        if 0 < self.top_k < scaled.shape[-1]:
            least = scaled.topk(self.top_k, dim=-1).values[..., -1:]
            scaled = scaled.masked_fill(scaled < least, -math.inf)
        found = scaled.softmax(-1)
        if self.top_p < 1:
            ordered, order = found.sort(dim=-1, descending=True, stable=True)
            # a token stays if those before it have not reached the mass yet
            kept = ordered.cumsum(-1) - ordered < self.top_p
            found = torch.zeros_like(found).scatter(-1, order, ordered * kept)
            found = found / found.sum(-1, keepdim=True)
        return found

    def uniforms(self, request: int, step: int, count: int = 1, stream: int = 0) -> np.ndarray:
        """``count`` numbers in [0, 1) that belong to one step of one request (Philox, SC 2011)."""
        bits = np.random.Philox(key=[self.seed, request], counter=[0, step, stream, 0])
        found: np.ndarray = np.random.Generator(bits).random(count)
        return found

    def choose(self, logits: Tensor, request: int, step: int) -> int:
        """The next token of one row, logits [vocabulary]."""
        if self.greedy:
            return int(logits.argmax())
        return draw(self.probabilities(logits), float(self.uniforms(request, step)[0]))


def draw(probabilities: Tensor, uniform: float) -> int:
    """The token at which the cumulated probability passes a uniform number."""
    sums = probabilities.cumsum(-1)
    at = int(torch.searchsorted(sums, uniform * float(sums[-1]), right=True))
    return min(at, int(probabilities.nonzero()[-1]))  # rounding must not reach a token of probability 0
