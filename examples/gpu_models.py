"""Small models for ``examples.gpu_check``: they need torch only, unless a transformers config is at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own habit)

import penstock

Inputs = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """A model to check.

    Attributes:
        make: builds the module, random weights.
        inputs: ``(batch, path)`` gives inputs; ``path`` is one of ``paths``.
        shapes: dynamic axes, as ``penstock.ModelSpec`` wants them.
        paths: how the inputs drive the model's branches; one empty name for a model without any.
        probability: of the first branch, by path, for the cost model.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int, str], Inputs]
    shapes: Mapping[str, Mapping[int, Any]]
    paths: tuple[str, ...] = ("",)
    probability: Mapping[str, float] = field(default_factory=dict)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norms[0](x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(attended)
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Encoder(nn.Module):
    """Blocks one after the other."""

    def __init__(self, width: int = 384, heads: int = 6, depth: int = 6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class EarlyExit(nn.Module):
    """Half of the blocks, then the other half unless the mean of the input says that it is enough."""

    def __init__(self, width: int = 384, heads: int = 6, depth: int = 6) -> None:
        super().__init__()
        self.first, self.rest = Encoder(width, heads, depth // 2), Encoder(width, heads, depth - depth // 2)

    def forward(self, x: Tensor) -> Tensor:
        enough = x.float().mean() > 0
        return torch.cond(enough, lambda y: y.clone(), self.rest, (self.first(x),))


class Convolutions(nn.Module):
    """A small residual network."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.body = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1) for _ in range(4))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for layer in self.body:
            x = F.relu(x + layer(x))
        return self.head(x.mean((2, 3)))


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _sequence(length: int, width: int = 384) -> Callable[[int, str], Inputs]:
    def make(batch: int, path: str) -> Inputs:
        made = _normal(batch, batch, length, width)
        return {"x": made - made.mean() + {"taken": 0.1, "untaken": -0.1}.get(path, 0.0)}

    return make


def cases() -> dict[str, Case]:
    """All of them, by name."""
    batch, length = penstock.Dim("batch", 1, 64), penstock.Dim("seq", 2, 512)
    text = {"x": {0: batch, 1: length}}
    found = {
        "encoder": Case(Encoder, _sequence(128), text),
        "early_exit": Case(
            EarlyExit, _sequence(128), text, ("taken", "untaken"), {"taken": 1.0, "untaken": 0.0}
        ),
        "convolutions": Case(
            Convolutions, lambda n, _: {"x": _normal(n, n, 3, 64, 64)}, {"x": {0: batch}}
        ),
        "tiny": Case(
            lambda: EarlyExit(32, 2, 2), _sequence(8, 32), text, ("taken", "untaken"), {"taken": 1.0, "untaken": 0.0}
        ),
    }  # fmt: skip
    try:
        import transformers
    except ImportError:
        return found
    config = transformers.BertConfig(
        num_hidden_layers=4, hidden_size=256, num_attention_heads=4, intermediate_size=1024
    )

    def tokens(batch: int, _: str) -> Inputs:
        ids = torch.randint(0, 1000, (batch, 128), generator=torch.Generator().manual_seed(batch))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    axes = {0: batch, 1: length}
    bert = Case(
        lambda: transformers.BertModel(config, add_pooling_layer=False), tokens,
        {"input_ids": axes, "attention_mask": axes},
    )  # fmt: skip
    return {**found, "bert": bert}
