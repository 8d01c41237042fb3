"""Scaled dot-product attention."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from backends.arguments import Refused, number, result_type
from backends.onnx_emit.create import triangle_mask
from backends.onnx_emit.pointwise import Emitter
from backends.onnx_emit.scope import MICROSOFT, Scope
from ir import Arg, Node, Value

_LOWEST = torch.finfo(torch.float32).min


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
    groups = _groups(q, k) if enable_gqa else 1
    if s.flavor == "onnxruntime" and groups == 1 and _fits_kernel(q, k, v, mask, bool(is_causal)):
        return _kernel(s, q, k, v, mask, number(scale))
    query, key, value = s[q], s[k], s[v]
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


def int8_attention(s: Scope, node: Node, q: Value, k: Value, v: Value, mask: Arg, scale: float, *steps: float) -> str:
    """``penstock.int8_attention``: both products between quantize/dequantize pairs, which engines run in int8."""
    if s.flavor == "onnxruntime":
        raise Refused("ONNX Runtime has no int8 attention kernel for the CPU; use the recipe int8")
    dtype = result_type(node)
    query, key, value = (_in_int8(s, x, step) for x, step in zip((q, k, v), steps, strict=True))
    scores = s.op("MatMul", query, s.transpose(key, _swap(q.tensor.rank)))
    scores = s.op("Mul", scores, s.tensor(scale, dtype))
    bias, kept = _bias(s, q, k, mask, False, dtype)
    if bias is not None:
        scores = s.op("Add", scores, bias)
    step, zero = s.const(1.0 / 255.0, dtype), s.const(0, torch.uint8)
    weights = s.op("Softmax", scores, axis=-1)
    weights = s.op("DequantizeLinear", s.op("QuantizeLinear", weights, step, zero), step, zero)
    result = s.op("MatMul", weights, value)
    return result if kept is None else s.op("Mul", result, kept)


def _in_int8(s: Scope, value: Value, step: float) -> str:
    by, zero = s.const(step, torch.float32), s.const(0, torch.int8)
    return s.op("DequantizeLinear", s.op("QuantizeLinear", s[value], by, zero), by, zero)


def _fits_kernel(q: Value, k: Value, v: Value, mask: Arg, causal: bool) -> bool:
    """Whether ONNX Runtime's attention kernel does this: f32, fixed heads, a mask per key or per pair."""
    sizes = (*q.tensor.shape[1::2], *k.tensor.shape[1::2], *v.tensor.shape[1::2])
    if q.tensor.rank != 4 or q.tensor.dtype != torch.float32 or not all(isinstance(d, int) for d in sizes):
        return False
    if causal or not isinstance(mask, Value):
        return not causal
    shape = mask.tensor.shape
    return len(shape) == 4 and (_per_key(q, k, mask) or shape[-2:] == (q.tensor.shape[-2], k.tensor.shape[-2]))


def _per_key(q: Value, k: Value, mask: Value) -> bool:
    want = (q.tensor.shape[0], 1, 1, k.tensor.shape[-2])
    return mask.tensor.dtype == torch.bool and mask.tensor.shape == want


def _kernel(s: Scope, q: Value, k: Value, v: Value, mask: Arg, scale: float) -> str:
    """``com.microsoft.MultiHeadAttention``: heads side by side, as the linears around it have them."""
    (batch, heads, rows, _), width = q.tensor.shape, v.tensor.shape[-1]
    sides = []
    for value in (q, k, v):
        n, h, m, d = value.tensor.shape
        sides.append(s.reshape(s.transpose(s[value], (0, 2, 1, 3)), (n, m, h, d), (n, m, h * d)))
    bias = keys = kept = None
    if isinstance(mask, Value):
        bias, kept = _bias(s, q, k, mask, False, torch.float32)
        if _per_key(q, k, mask):
            flat = s.reshape(s[mask], mask.tensor.shape, (mask.tensor.shape[0], mask.tensor.shape[3]))
            bias, keys = None, s.cast(flat, torch.bool, torch.int32)
    made = s.op(
        "MultiHeadAttention", *sides, None, keys, bias, domain=MICROSOFT, num_heads=heads, scale=scale,
        mask_filter_value=_LOWEST,
    )  # fmt: skip
    made = s.reshape(made, (batch, rows, heads * width), (batch, rows, heads, width))
    if kept is not None:
        made = s.op("Mul", made, s.transpose(kept, (0, 2, 1, 3)))
        # stays a view of the flat form, which is what the next linear reads
    return s.transpose(made, (0, 2, 1, 3))


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


def _bias(s: Scope, q: Value, k: Value, mask: Arg, causal: bool, dtype: torch.dtype) -> tuple[str | None, str | None]:
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


ATTENTION: Mapping[str, Emitter] = {
    "aten.scaled_dot_product_attention.default": attention,
    "penstock.int8_attention.default": int8_attention,
}
