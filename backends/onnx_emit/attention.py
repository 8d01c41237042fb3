"""Scaled dot-product attention."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from backends.onnx_emit.create import triangle_mask
from backends.onnx_emit.dtypes import Refused
from backends.onnx_emit.pointwise import Emitter, result_type
from backends.onnx_emit.scope import Scope
from ir import Arg, Node, Value


def attention(
    s: Scope, node: Node, q: Value, k: Value, v: Value, mask: Arg = None, dropout: Arg = 0.0,
    is_causal: Arg = False, scale: Arg = None, enable_gqa: Arg = False,
) -> str:  # fmt: skip
    """``softmax(q k' scale + mask) v``; a row that the mask leaves empty gives zeros, as in torch."""
    if dropout:
        raise Refused("attention with dropout; put the model into eval mode")
    if scale is None:
        width = q.tensor.shape[-1]
        if not isinstance(width, int):
            raise Refused("attention over a head size that is known only when it runs")
        scale = 1.0 / math.sqrt(width)
    dtype = result_type(node)
    query, key, value = s[q], s[k], s[v]
    groups = _groups(q, k) if enable_gqa else 1
    if groups > 1:
        query, key, value = _share_heads(s, q, k, v, groups)
    scores = s.op("MatMul", query, s.transpose(key, _swap(q.tensor.rank + (groups > 1))))
    scores = s.op("Mul", scores, s.tensor(scale, dtype))
    bias, kept = _bias(s, q, k, mask, bool(is_causal), dtype)
    if bias is not None:
        if groups > 1:
            bias, kept = (_group_mask(s, name, mask, groups) for name in (bias, kept))
        scores = s.op("Add", scores, bias)
    result = s.op("MatMul", s.op("Softmax", scores, axis=-1), value)
    if kept is not None:
        result = s.op("Mul", result, kept)
    if groups > 1:
        rank = q.tensor.rank
        result = s.reshape(result, (), node.results[0].tensor.shape) if _fixed(node) else s.op(
            "Reshape", result, s.join([*(s.size_of(q, i) for i in range(rank - 1)), s.size_of(v, -1)])
        )  # fmt: skip
    return result


def _fixed(node: Node) -> bool:
    return sum(not isinstance(d, int) for d in node.results[0].tensor.shape) <= 1


def _swap(rank: int) -> list[int]:
    order = list(range(rank))
    order[-1], order[-2] = order[-2], order[-1]
    return order


def _groups(q: Value, k: Value) -> int:
    heads, shared = q.tensor.shape[-3], k.tensor.shape[-3]
    if not isinstance(heads, int) or not isinstance(shared, int):
        raise Refused("grouped attention over a number of heads that is known only when it runs")
    return heads // shared


def _share_heads(s: Scope, q: Value, k: Value, v: Value, groups: int) -> tuple[str, str, str]:
    """Queries of a group side by side; keys and values broadcast over the group without a copy."""
    rank = q.tensor.rank
    shared = k.tensor.shape[-3]
    assert isinstance(shared, int)
    lead = [s.size_of(q, i) for i in range(rank - 3)]
    shape = s.join([*lead, s.ints(shared, groups), s.size_of(q, -2), s.size_of(q, -1)])
    axis = s.ints(rank - 2)
    return s.op("Reshape", s[q], shape), s.op("Unsqueeze", s[k], axis), s.op("Unsqueeze", s[v], axis)


def _group_mask(s: Scope, name: str | None, mask: Arg, groups: int) -> str | None:
    """Give a mask the dim of the groups."""
    if name is None or not isinstance(mask, Value) or mask.tensor.rank < 3:
        return name
    heads = mask.tensor.shape[-3]
    if heads == 1:
        return s.op("Unsqueeze", name, s.ints(mask.tensor.rank - 2))
    assert isinstance(heads, int)
    lead = [s.op("Shape", name, start=i, end=i + 1) for i in range(mask.tensor.rank - 3)]
    tail = s.op("Shape", name, start=mask.tensor.rank - 2)
    return s.op("Reshape", name, s.join([*lead, s.ints(heads // groups, groups), tail]))


def _bias(
    s: Scope, q: Value, k: Value, mask: Arg, causal: bool, dtype: torch.dtype
) -> tuple[str | None, str | None]:
    """What is added to the scores, and a factor that is 0 for rows with nothing to attend to."""
    if causal:
        if mask is not None:
            raise Refused("attention that is causal and has a mask")
        # below the first row's diagonal: no row is empty
        below = triangle_mask(s, s.size_of(q, -2), s.size_of(k, -2), 0, upper=False)
        return s.op("Where", below, s.const(0, dtype), s.const(-math.inf, dtype)), None
    if not isinstance(mask, Value):
        return None, None
    name, axes = s[mask], s.ints(-1)
    zero, one = s.const(0, dtype), s.const(1, dtype)
    least = s.const(torch.finfo(dtype).min, dtype)
    if mask.tensor.dtype == torch.bool:
        bias = s.op("Where", name, zero, least)
        return bias, s.op("ReduceMax", s.op("Where", name, one, zero), axes, keepdims=1)
    bias = s.cast(name, mask.tensor.dtype, dtype)
    highest = s.op("ReduceMax", bias, axes, keepdims=1)
    kept = s.op("Where", s.op("Equal", highest, s.const(-math.inf, dtype)), zero, one)
    return s.op("Max", bias, least), kept


ATTENTION: Mapping[str, Emitter] = {"aten.scaled_dot_product_attention.default": attention}
