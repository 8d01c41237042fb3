"""One small encoder block over tokens, any batch and sequence length, with a metric."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import penstock

DIMS = {0: penstock.Dim("batch", 1, 8), 1: penstock.Dim("seq", 2, 32)}
BEST: list[float] = []
"""Every value that the metric gave, in order."""


class Block(nn.Module):
    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(50, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x = self.embed(tokens)
        batch, seq, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, seq, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return {"hidden": x + self.out(mixed.transpose(1, 2).reshape(batch, seq, width))}


def _tokens(seed: int, batch: int = 2, seq: int = 8) -> dict[str, Tensor]:
    return {"tokens": torch.randint(0, 50, (batch, seq), generator=torch.Generator().manual_seed(seed))}


def model() -> penstock.ModelSpec:
    torch.manual_seed(0)
    return penstock.ModelSpec(Block(), _tokens(0), {"tokens": DIMS}, [_tokens(1), _tokens(2, 3, 5)], name="block")


def with_metric() -> penstock.ModelSpec:
    spec = model()
    held_out = _tokens(3)
    want = spec.model(**held_out)["hidden"].detach()

    def agreement(run: Callable[..., Mapping[str, Tensor]]) -> float:
        BEST.append(1.0 - float((run(**held_out)["hidden"] - want).abs().max()))
        return BEST[-1]

    return penstock.ModelSpec(
        spec.model, spec.example_inputs, spec.dynamic_shapes, spec.calibration, agreement, "measured"
    )
