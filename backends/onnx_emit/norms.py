"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from backends.arguments import Refused, number, result_type
from backends.onnx_emit.pointwise import Emitter
from backends.onnx_emit.scope import Scope
from ir import Arg, Node, Value


def _ones(s: Scope, shape: tuple[Any, ...], dtype: torch.dtype) -> str:
    if not all(isinstance(d, int) for d in shape):
        raise Refused("a norm over a dim whose size is known only when it runs")
    return s.const(torch.ones(shape), dtype)


def layer_norm(
    s: Scope, node: Node, x: Value, shape: tuple[Arg, ...], weight: Arg = None, bias: Arg = None,
    eps: float = 1e-5, *_: Arg,
) -> str | tuple[str, ...]:  # fmt: skip
    """``layer_norm`` and its native form, which also returns mean and inverse deviation."""
    dtype, count = result_type(node), len(shape)
    scale = s[weight] if isinstance(weight, Value) else _ones(s, x.tensor.shape[-count:], dtype)
    shift = s[bias] if isinstance(bias, Value) else None
    made = s.op("LayerNormalization", s[x], scale, shift, axis=-count, epsilon=eps)
    if len(node.results) == 1:
        return made
    if not any(v.uses for v in node.results[1:]):
        return made, "", ""
    axes = s.ints(*range(x.tensor.rank - count, x.tensor.rank))
    mean = s.op("ReduceMean", s[x], axes, keepdims=1)
    gap = s.op("Sub", s[x], mean)
    variance = s.op("ReduceMean", s.op("Mul", gap, gap), axes, keepdims=1)
    deviation = s.op("Sqrt", s.op("Add", variance, s.const(eps, dtype)))
    return made, mean, s.op("Reciprocal", deviation)


def rms_norm(s: Scope, node: Node, x: Value, shape: tuple[Arg, ...], weight: Arg = None, eps: Arg = None) -> str:
    """``x / sqrt(mean(x * x) + eps) * weight``; the half precisions are computed in f32, as torch does."""
    dtype, count = result_type(node), len(shape)
    least = torch.finfo(dtype).eps if eps is None else number(eps)
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    name = s.cast(s[x], dtype, wide)
    axes = s.ints(*range(-count, 0))
    mean = s.op("ReduceMean", s.op("Mul", name, name), axes, keepdims=1)
    made = s.op("Div", name, s.op("Sqrt", s.op("Add", mean, s.const(least, wide))))
    if isinstance(weight, Value):
        made = s.op("Mul", made, s.cast(s[weight], weight.tensor.dtype, wide))
    return s.cast(made, wide, dtype)


def group_norm(
    s: Scope,
    node: Node,
    x: Value,
    groups: int,
    weight: Arg = None,
    bias: Arg = None,
    eps: float = 1e-5,
    *_: Arg,
) -> str:
    """Instance norm over groups of channels, then scale and shift per channel: the form engines fuse."""
    dtype = result_type(node)
    grouped = s.op("Reshape", s[x], s.ints(0, groups, -1))
    one, zero = s.const(torch.ones(groups), dtype), s.const(torch.zeros(groups), dtype)
    made = s.op("InstanceNormalization", grouped, one, zero, epsilon=eps)
    shape = x.tensor.shape
    fixed = sum(not isinstance(d, int) for d in shape[1:]) == 0
    want = s.ints(0, *(int(d) for d in shape[1:])) if fixed else s.sizes_of(x)
    made = s.op("Reshape", made, want)
    spread = [-1] + [1] * (len(shape) - 2)
    if isinstance(weight, Value):
        made = s.op("Mul", made, s.op("Reshape", s[weight], s.ints(*spread)))
    if isinstance(bias, Value):
        made = s.op("Add", made, s.op("Reshape", s[bias], s.ints(*spread)))
    return made


def native_group_norm(
    s: Scope, node: Node, x: Value, weight: Arg, bias: Arg, n: Arg, c: Arg, hw: Arg, groups: int, eps: float
) -> tuple[str, str, str]:
    """``group_norm`` in the form that also returns its statistics."""
    if any(v.uses for v in node.results[1:]):
        raise Refused("the statistics of a group norm")
    return group_norm(s, node, x, groups, weight, bias, eps), "", ""


def _inference(
    s: Scope, node: Node, x: Value, weight: Arg, bias: Arg, mean: Arg, variance: Arg, eps: float
) -> str | tuple[str, ...]:
    if not isinstance(mean, Value) or not isinstance(variance, Value):
        raise Refused("batch norm without running statistics")
    dtype = mean.tensor.dtype
    scale = s[weight] if isinstance(weight, Value) else _ones(s, mean.tensor.shape, dtype)
    shift = s[bias] if isinstance(bias, Value) else s.const(torch.zeros(mean.tensor.shape), dtype)
    made = s.op("BatchNormalization", s[x], scale, shift, s[mean], s[variance], epsilon=eps)
    if len(node.results) > 1 and any(v.uses for v in node.results[1:]):
        raise Refused("the statistics of a batch norm")
    return made if len(node.results) == 1 else (made, *[""] * (len(node.results) - 1))


def batch_norm(
    s: Scope, node: Node, x: Value, weight: Arg, bias: Arg, mean: Arg, variance: Arg, training: Arg,
    momentum: Arg, eps: float, *_: Arg,
) -> Any:  # fmt: skip
    """``batch_norm`` with running statistics."""
    if training:
        raise Refused("batch norm in training mode; put the model into eval mode")
    return _inference(s, node, x, weight, bias, mean, variance, eps)


def batch_norm_inference(
    s: Scope,
    node: Node,
    x: Value,
    weight: Arg,
    bias: Arg,
    mean: Arg,
    variance: Arg,
    momentum: Arg,
    eps: float,
) -> Any:
    """``_native_batch_norm_legit_no_training``."""
    return _inference(s, node, x, weight, bias, mean, variance, eps)


def instance_norm(
    s: Scope, node: Node, x: Value, weight: Arg, bias: Arg, mean: Arg, variance: Arg, use_input_stats: Arg,
    momentum: Arg, eps: float, *_: Arg,
) -> Any:  # fmt: skip
    """``instance_norm`` over the input's own statistics."""
    if not use_input_stats:
        return _inference(s, node, x, weight, bias, mean, variance, eps)
    dtype, channels = result_type(node), x.tensor.shape[1]
    scale = s[weight] if isinstance(weight, Value) else _ones(s, (channels,), dtype)
    shift = s[bias] if isinstance(bias, Value) else s.op("Sub", scale, scale)
    return s.op("InstanceNormalization", s[x], scale, shift, epsilon=eps)


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
