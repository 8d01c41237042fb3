"""Layers of narrow numbers, attention and caches, in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from backends.tensorrt.library import torch_type
from backends.tensorrt.simulate_layers import Rule

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of e2m1, by its three low bits."""


def content_of(trt: Any, tensor: Tensor, kind: Any) -> Tensor:
    """What a constant holds; numbers of four bits come apart: int4 as int8, fp4 as float32."""
    word = str(kind).rpartition(".")[2]
    if word not in ("INT4", "FP4"):
        return tensor if tensor.dtype != torch.float64 else tensor.float()
    nibbles = torch.stack([tensor & 15, tensor >> 4], -1).flatten(-2).to(torch.int8)
    if word == "INT4":
        return torch.where(nibbles > 7, nibbles - 16, nibbles)
    values = torch.tensor(FP4)[(nibbles & 7).long()]
    return torch.where(nibbles > 7, -values, values)


def _spread(scale: Tensor, x: Tensor, axis: int) -> Tensor:
    """A scale per tensor, per channel, or per block, at the shape of ``x``."""
    if scale.dim() == 0 or (scale.numel() == 1 and scale.dim() != x.dim()):
        return scale.reshape([1] * x.dim())
    if scale.dim() == 1 and x.dim() > 1:
        return scale.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
    for dim, (have, want) in enumerate(zip(scale.shape, x.shape, strict=True)):
        scale = scale if have == want else scale.repeat_interleave(want // have, dim)
    return scale


def _quantize(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    x, scale = inputs[0].float(), inputs[1].float()
    scaled = x / _spread(scale, x, layer.axis)
    word = str(layer.to_type).rpartition(".")[2]
    if word == "INT8":
        return scaled.round().clamp(-128, 127).to(torch.int8)
    if word == "FP8":
        return scaled.clamp(-448, 448).to(torch.float8_e4m3fn)
    if word == "INT4":
        return scaled.round().clamp(-8, 7).to(torch.int8)
    assert word == "FP4", word
    return to_fp4(scaled)


def _dequantize(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    x, scale = inputs[0].float(), inputs[1].float()
    return (x * _spread(scale, x, layer.axis)).to(torch_type(trt, layer.to_type))


def to_fp4(x: Tensor) -> Tensor:
    """The nearest e2m1 number, ties to the even one, as float32."""
    values = torch.tensor(FP4)
    size = x.abs().clamp_max(6.0)
    gaps = (size.unsqueeze(-1) - values).abs()
    best = gaps.amin(-1, keepdim=True)
    tied = gaps == best
    odd = (torch.arange(8) % 2).bool()
    place = torch.where(tied & ~(odd & (tied.sum(-1, keepdim=True) > 1)), torch.arange(8), 8).amin(-1)
    return values[place] * x.sign()


def _dynamic_quantize(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Blocks along one dim: an fp8 scale each, against one scale of the whole tensor."""
    x, whole = inputs[0].float(), inputs[1].float()
    axis, block = layer.axis % x.dim(), layer.block_size
    cut = x.unflatten(axis, (-1, block))
    top = cut.abs().amax(axis + 1)
    scale = (top / 6.0 / whole).clamp(-448, 448).to(torch.float8_e4m3fn)
    step = (scale.float() * whole).repeat_interleave(block, axis)
    return [to_fp4(torch.where(step == 0, torch.zeros_like(x), x / torch.where(step == 0, 1.0, step))), scale]


def _attention(trt: Any, layer: Any, inputs: Sequence[Any]) -> Tensor:
    """Scores are not scaled; heads of keys are shared by groups of heads of queries."""
    q, k, v, mask, lengths = inputs
    dtype, groups = q.dtype, q.shape[1] // k.shape[1]
    q, k, v = (t.float() for t in (q, k, v))
    k, v = (t.repeat_interleave(groups, 1) for t in (k, v))
    scores = q @ k.transpose(-1, -2)
    rows, columns = scores.shape[-2:]
    kind = str(layer.attention.causal_kind).rpartition(".")[2]
    if kind != "NONE":
        assert mask is None
        shift = columns - rows if kind == "LOWER_RIGHT" else 0
        below = torch.ones(rows, columns, dtype=torch.bool).tril(shift)
        scores = scores.masked_fill(~below, float("-inf"))
    if mask is not None:
        assert mask.dim() == 4
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.float()
    if lengths is not None:
        beyond = torch.arange(columns) >= lengths.reshape(-1, 1, 1, 1)
        scores = scores.masked_fill(beyond, float("-inf"))
    return (torch.softmax(scores, -1) @ v).to(dtype)


def _cache_update(trt: Any, layer: Any, inputs: Sequence[Tensor]) -> Tensor:
    cache, update, places = inputs[:3]
    made = cache.clone()
    for batch, start in enumerate(int(p) for p in places):
        made[batch, :, start : start + update.shape[2]] = update[batch]
    return made


NARROW: Mapping[str, Rule] = {
    "QUANTIZE": _quantize,
    "DEQUANTIZE": _dequantize,
    "DYNAMIC_QUANTIZE": _dynamic_quantize,
    "ATTENTION_OUTPUT": _attention,
    "KV_CACHE_UPDATE": _cache_update,
}
