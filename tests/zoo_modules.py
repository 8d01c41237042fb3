"""The hand-written models of the zoo."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn


class OnlyLogits(nn.Module):
    """A transformers model that returns tensors only: no cache."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]


class DecodeStep(nn.Module):
    """One step of Llama with a static cache that the caller owns and this writes into."""

    def __init__(self, model: nn.Module, length: int) -> None:
        super().__init__()
        self.model, self.length = model, length

    def forward(self, input_ids: Tensor, pos: Tensor, ks: list[Tensor], vs: list[Tensor]) -> Tensor:
        from transformers import StaticCache

        cache = StaticCache(config=self.model.config, max_cache_len=self.length)
        for layer, k, v in zip(cache.layers, ks, vs, strict=True):
            layer.lazy_initialization(k, v)
            layer.keys, layer.values = k, v
            layer.cumulative_length = pos[:1].clone()
        return self.model(input_ids=input_ids, past_key_values=cache, use_cache=True).logits


class _Attention(nn.Module):
    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        self.q = nn.Linear(channels, channels, bias=False)
        self.k, self.v = nn.Linear(context, channels, bias=False), nn.Linear(context, channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (p.unflatten(-1, (4, -1)).transpose(1, 2) for p in (self.q(x), self.k(context), self.v(context)))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, time: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, before), nn.GroupNorm(4, after)
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        self.time = nn.Linear(time, after)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.conv2(F.silu(self.norm2(h))) + self.skip(x)


class UNetBlock(nn.Module):
    """Down, self- and cross-attention, up, with a skip connection: height and width must be even."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.middle, self.leave = _Residual(4, 16, 8), _Residual(16, 16, 8), _Residual(32, 4, 8)
        self.down, self.up = nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.own, self.cross = nn.LayerNorm(16), _Attention(16, 16), _Attention(16, 12)

    def forward(self, sample: Tensor, time: Tensor, context: Tensor) -> Tensor:
        skip = self.enter(sample, time)
        h = self.middle(self.down(skip), time)
        rows = self.norm(h.flatten(2).transpose(1, 2))
        rows = rows + self.own(rows, rows)
        rows = rows + self.cross(rows, context)
        h = rows.transpose(1, 2).reshape(h.shape)
        h = self.up(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.leave(torch.cat([h, skip], dim=1), time)


class _BasicBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.skip = nn.Identity()
        if stride != 1 or before != after:
            self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)), inplace=True)
        h = self.bn2(self.conv2(h))
        h += self.skip(x)
        return F.relu(h)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(_BasicBlock(8, 8, 1), _BasicBlock(8, 16, 2))
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        h = self.blocks(self.pool(self.stem(images)))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(h, 1), 1))


class Recurrent(nn.Module):
    """LSTM then GRU. Torch traces their steps one by one: ``seq`` stays as traced."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=2, batch_first=True)
        self.gru = nn.GRU(16, 8, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = self.lstm(x)
        z, last = self.gru(y)
        return z, last


class EarlyExit(nn.Module):
    """The second half runs only while the first is not sure enough for every row."""

    def __init__(self, exits: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(exits + 1))
        self.head = nn.Linear(8, 3)
        self.register_buffer("threshold", torch.tensor(0.45))

    def forward(self, x: Tensor) -> Tensor:
        return self._from(0, x.mean(dim=1))

    def _from(self, index: int, x: Tensor) -> Tensor:
        h = torch.tanh(self.layers[index](x))
        logits = self.head(h)
        if index == len(self.layers) - 1:
            return logits
        sure = logits.softmax(-1).amax(-1).min() > self.threshold
        return torch.cond(sure, lambda h, y: y.clone(), lambda h, y: self._from(index + 1, h), (h, logits))


class UntilSettled(nn.Module):
    """Applies one layer until it changes little: a data-dependent number of times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        def unsettled(i: Tensor, x: Tensor, change: Tensor) -> Tensor:
            return (change > 0.05) & (i < 20)

        def step(i: Tensor, x: Tensor, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = torch.tanh(self.layer(x)) * 0.5
            return i + 1, y, (y - x).abs().amax()

        start = (torch.zeros((), dtype=torch.int64), x.clone(), torch.ones(()))
        rounds, settled, _ = torch.while_loop(unsettled, step, start)
        return settled, rounds


class Compaction(nn.Module):
    """Only the rows that a gate picks go through the expensive part."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.expensive = nn.Linear(8, 1), nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        picked = (self.gate(rows).squeeze(-1) > 0).nonzero().squeeze(-1)
        done = self.expensive(rows.index_select(0, picked))
        return rows.index_copy(0, picked, done).reshape(x.shape)


class Tied(nn.Module):
    """Input and output embedding are one tensor."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 16)
        self.out = nn.Linear(16, vocabulary, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embed(input_ids)))


@cache
def define_custom_op() -> torch.library.Library:
    """``zoo::soft_clip``, an operator that no pass of Penstock knows."""
    library = torch.library.Library("zoo", "DEF")
    library.define("soft_clip(Tensor x, float limit) -> Tensor")
    library.impl("soft_clip", lambda x, limit: limit * torch.tanh(x / limit), "CPU")
    library.impl("soft_clip", lambda x, limit: torch.empty_like(x), "Meta")
    return library


class CustomOp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.zoo.soft_clip(self.layer(x), 0.5) + x


class RunningMean(nn.Module):
    """Keeps a state of its own between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(x.mean(dim=(0, 1)), alpha=0.1)
        self.calls += 1
        return x - self.mean
