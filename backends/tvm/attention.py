"""Scaled dot-product attention from products and a softmax."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from backends.arguments import Refused, number, result_type, shape_of
from backends.tvm.dtypes import wide
from backends.tvm.products import product
from backends.tvm.reductions import fold, softmaxed
from backends.tvm.scope import Emitter, Kernel, Scope, Tensor
from backends.tvm.views import moved
from ir import Arg, Node, Value


def attention(
    s: Scope, node: Node, q: Value, k: Value, v: Value, mask: Arg = None, dropout: Arg = 0.0,
    is_causal: Arg = False, scale: Arg = None, enable_gqa: Arg = False,
) -> Tensor:  # fmt: skip
    """``softmax(q k' scale + mask) v``; a row that the mask leaves empty gives zeros, as in torch."""
    by = checked_scale(q, mask, dropout, is_causal, scale)
    dtype = result_type(node)
    query, key, value = s[q], s[k], s[v]
    groups = groups_of(q, k) if enable_gqa else 1
    if groups > 1:
        key, value = (_repeated(s, t, groups) for t in (key, value))
    inner = wide(dtype)
    scores = product(s, query, key, inner, transposed=True)
    scores = s.pointwise("scale", inner, lambda x: x * cast_const(by, x), [scores])
    empty = None
    if is_causal:
        scores = _causal(s, scores)
    elif isinstance(mask, Value):
        scores, empty = masked(s, scores, s[mask])
    weights = softmaxed(s, scores, scores.rank - 1)
    if empty is not None:
        from tvm import tirx

        weights = s.pointwise(
            "keep", inner, lambda w, e: tirx.Select(e, cast_const(0, w), w), [weights, empty], [inner, torch.bool]
        )
    made = product(s, s.tensor(weights, dtype), value, dtype)
    return s.reshape(made, shape_of(node))


def checked_scale(q: Value, mask: Arg, dropout: Arg, causal: Arg, scale: Arg) -> float:
    """The factor of the scores.

    Raises:
        Refused: what no engine of ours does.
    """
    if dropout:
        raise Refused("attention with dropout; put the model into eval mode")
    if causal and mask is not None:
        raise Refused("attention that is causal and has a mask")
    if scale is not None:
        return number(scale)
    width = q.tensor.shape[-1]
    if not isinstance(width, int):
        raise Refused("attention over a head size that is known only when it runs")
    return 1.0 / math.sqrt(width)


def cast_const(value: float, like: Any) -> Any:
    """A number in the type of another."""
    from tvm import tirx

    return tirx.const(value, like.ty.dtype)


def groups_of(q: Value, k: Value) -> int:
    """How many queries share a key."""
    heads, shared = q.tensor.shape[-3], k.tensor.shape[-3]
    if not isinstance(heads, int) or not isinstance(shared, int):
        raise Refused("grouped attention over a number of heads that is known only when it runs")
    return heads // shared


def _repeated(s: Scope, x: Tensor, groups: int) -> Tensor:
    from tvm import tirx

    shape = (*x.shape[:-3], x.shape[-3] * groups, *x.shape[-2:])
    return moved(s, "groups", x, shape, lambda k, i: [*i[:-3], tirx.floordiv(i[-3], groups), *i[-2:]])


def _causal(s: Scope, scores: Tensor) -> Tensor:
    from tvm import tirx

    def body(k: Kernel, index: Sequence[Any], t: Any) -> Any:
        value = t(*index)
        return tirx.Select(index[-1] <= index[-2], value, cast_const(-math.inf, value))

    return s.compute("causal", scores.shape, scores.dtype, body, scores)


def masked(s: Scope, scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Scores under a mask, and which rows it leaves empty; such rows are kept finite."""
    from tvm import tirx

    least = torch.finfo(scores.dtype).min
    if mask.dtype == torch.bool:
        made = s.pointwise(
            "mask", scores.dtype, lambda v, m: tirx.Select(m, v, cast_const(least, v)), [scores, mask],
            [scores.dtype, torch.bool],
        )  # fmt: skip
        any_left = fold(s, "any", mask, [mask.rank - 1], True, torch.int32, "max")
        return made, s.pointwise("empty", torch.bool, lambda v: v == 0, [any_left], torch.int32)
    made = s.pointwise("mask", scores.dtype, lambda v, m: v + tirx.max(m, cast_const(least, v)), [scores, mask])
    top = fold(s, "top", mask, [mask.rank - 1], True, scores.dtype, "max")
    return made, s.pointwise("empty", torch.bool, lambda v: v == cast_const(-math.inf, v), [top], scores.dtype)


def int8_attention(
    s: Scope, node: Node, q: Value, k: Value, v: Value, mask: Arg, scale: float, *steps: float
) -> Tensor:
    """``penstock.int8_attention``: refused, since nothing here would run it in int8."""
    raise Refused("TVM has no int8 attention kernel here; use the recipe int8")


ATTENTION: Mapping[str, Emitter] = {
    "aten.scaled_dot_product_attention.default": attention,
    "penstock.int8_attention.default": int8_attention,
}
