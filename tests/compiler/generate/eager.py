"""What generation must give: the model itself, run on the whole text for every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from compiler.runtime.sampling import Sampling

Logits = Callable[[torch.Tensor], torch.Tensor]
"""int64 [1, seq] -> logits [1, seq, vocabulary]."""


@torch.no_grad()
def write_on(logits: Logits, prompt: Sequence[int], count: int, sampling: Sampling, request: int = 0) -> list[int]:
    """So many tokens after a prompt."""
    tokens = list(prompt)
    for step in range(count):
        tokens.append(sampling.choose(logits(torch.tensor([tokens]))[0, -1], request, step))
    return tokens[len(prompt) :]
