"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from backends.arguments import Refused, number, result_type
from backends.tvm.dtypes import wide
from backends.tvm.reductions import count, fold
from backends.tvm.scalars import constant
from backends.tvm.scope import Emitter, Scope, Tensor
from ir import Arg, Dim, Node, Value


def _inverse(m: Any, eps: float) -> Any:
    return lambda v, n: constant(1, v) / m.call("sqrt", v / n + constant(eps, v))


def _standard(s: Scope, x: Tensor, axes: Sequence[int], eps: float) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation over dims, which stay as one."""
    inner = wide(x.dtype)
    total = fold(s, "mean", x, axes, True, inner, "sum")
    mean = s.pointwise("div", inner, lambda v, n: v / n, [total, count(x, axes)], inner)
    squares = s.pointwise("gap", inner, lambda v, m: (v - m) * (v - m), [x, mean], inner)
    spread = fold(s, "variance", squares, axes, True, inner, "sum")
    return mean, s.pointwise("rsqrt", inner, _inverse(s.math, eps), [spread, count(x, axes)], inner)


def _scaled(
    s: Scope, name: str, dtype: torch.dtype, x: Tensor, mean: Tensor, inverse: Tensor, scale: Any, shift: Any
) -> Tensor:
    def f(v: Any, m: Any, i: Any, *rest: Any) -> Any:
        made, more = (v - m) * i, list(rest)
        if scale is not None:
            made = made * more.pop(0)
        return made + more.pop(0) if shift is not None else made

    args = [x, mean, inverse, *(t for t in (scale, shift) if t is not None)]
    return s.pointwise(name, dtype, f, args, wide(dtype))


def layer_norm(
    s: Scope, node: Node, x: Value, shape: tuple[Arg, ...], weight: Arg = None, bias: Arg = None,
    eps: float = 1e-5, *_: Arg,
) -> Any:  # fmt: skip
    """``layer_norm`` and its native form, which also returns mean and inverse deviation."""
    rank = x.tensor.rank
    mean, inverse = _standard(s, s[x], list(range(rank - len(shape), rank)), eps)
    made = _scaled(s, "layer_norm", result_type(node), s[x], mean, inverse, weight, bias)
    if len(node.results) == 1:
        return made
    return made, *(s.tensor(t, v.tensor.dtype) for t, v in zip((mean, inverse), node.results[1:], strict=True))


def rms_norm(s: Scope, node: Node, x: Value, shape: tuple[Arg, ...], weight: Arg = None, eps: Arg = None) -> Tensor:
    """``x / sqrt(mean(x * x) + eps) * weight``; the half precisions are computed in f32, as torch does."""
    dtype, rank = result_type(node), x.tensor.rank
    least = torch.finfo(dtype).eps if eps is None else number(eps)
    axes, inner = list(range(rank - len(shape), rank)), wide(dtype)
    total = fold(s, "squares", s[x], axes, True, inner, "sum", lambda v: v * v)
    inverse = s.pointwise("rsqrt", inner, _inverse(s.math, least), [total, count(s[x], axes)], inner)
    args = [x, inverse] if weight is None else [x, inverse, weight]
    return s.pointwise("rms_norm", dtype, lambda v, i, w=None: v * i if w is None else v * i * w, args, inner)


def group_norm(
    s: Scope, node: Node, x: Value, groups: int, weight: Arg = None, bias: Arg = None, eps: float = 1e-5, *_: Arg
) -> Tensor:
    """Over groups of channels, then scale and shift per channel."""
    shape = x.tensor.shape
    channels = shape[1]
    if not isinstance(channels, int):
        raise Refused("group norm over a number of channels that is known only when it runs")
    rest: Dim = 1
    for dim in shape[2:]:
        rest = rest * dim
    flat = s.reshape(s[x], (shape[0], groups, channels // groups, rest))
    mean, inverse = _standard(s, flat, [2, 3], eps)
    scale, shift = (None if v is None else s.reshape(s[v], (1, groups, channels // groups, 1)) for v in (weight, bias))
    return s.reshape(_scaled(s, "group_norm", result_type(node), flat, mean, inverse, scale, shift), shape)


def native_group_norm(
    s: Scope, node: Node, x: Value, weight: Arg, bias: Arg, n: Arg, c: Arg, hw: Arg, groups: int, eps: float
) -> Any:
    """``group_norm`` in the form that also returns its statistics."""
    if any(v.uses for v in node.results[1:]):
        raise Refused("the statistics of a group norm")
    made = group_norm(s, node, x, groups, weight, bias, eps)
    return made, made, made


def _inference(s: Scope, node: Node, x: Value, weight: Arg, bias: Arg, mean: Arg, variance: Arg, eps: float) -> Any:
    if not isinstance(mean, Value) or not isinstance(variance, Value):
        raise Refused("batch norm without running statistics")
    if any(v.uses for v in node.results[1:]):
        raise Refused("the statistics of a batch norm")
    dtype = result_type(node)
    spread = [-1, *[1] * (x.tensor.rank - 2)]

    def channels(v: Arg) -> Tensor | None:
        return None if v is None else s.reshape(s[v], (*s[v].shape, *[1] * (len(spread) - 1)))

    inverse = s.pointwise(
        "rsqrt", wide(dtype), lambda v: constant(1, v) / s.math.call("sqrt", v + constant(eps, v)), [channels(variance)]
    )
    average = channels(mean)
    assert average is not None
    made = _scaled(s, "batch_norm", dtype, s[x], average, inverse, channels(weight), channels(bias))
    return made if len(node.results) == 1 else [made] * len(node.results)


def batch_norm(
    s: Scope, node: Node, x: Value, weight: Arg, bias: Arg, mean: Arg, variance: Arg, training: Arg,
    momentum: Arg, eps: float, *_: Arg,
) -> Any:  # fmt: skip
    """``batch_norm`` with running statistics."""
    if training:
        raise Refused("batch norm in training mode; put the model into eval mode")
    return _inference(s, node, x, weight, bias, mean, variance, eps)


def batch_norm_inference(
    s: Scope, node: Node, x: Value, weight: Arg, bias: Arg, mean: Arg, variance: Arg, momentum: Arg, eps: float
) -> Any:
    """``_native_batch_norm_legit_no_training``."""
    return _inference(s, node, x, weight, bias, mean, variance, eps)


def instance_norm(
    s: Scope, node: Node, x: Value, weight: Arg, bias: Arg, mean: Arg, variance: Arg, use_input_stats: Arg,
    momentum: Arg, eps: float, *_: Arg,
) -> Any:  # fmt: skip
    """``instance_norm``: a group per channel."""
    if not use_input_stats:
        return _inference(s, node, x, weight, bias, mean, variance, eps)
    channels = x.tensor.shape[1]
    assert isinstance(channels, int)
    return group_norm(s, node, x, channels, weight, bias, eps)


NORMS: Mapping[str, Emitter] = {
    "aten.layer_norm.default": layer_norm,
    "aten.native_layer_norm.default": layer_norm,
    "aten.rms_norm.default": rms_norm,
    "aten.group_norm.default": group_norm,
    "aten.native_group_norm.default": native_group_norm,
    "aten.batch_norm.default": batch_norm,
    "aten.native_batch_norm.default": batch_norm,
    "aten._native_batch_norm_legit.default": batch_norm,
    "aten._native_batch_norm_legit_no_training.default": batch_norm_inference,
    "aten.instance_norm.default": instance_norm,
}
