"""Narrow number formats: quantize and dequantize layers, which TensorRT turns into int8, fp8 or fp4 products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from backends.arguments import Refused, result_type
from backends.tensorrt.layers import alike, cast, constant, ew, matmul, rank, reshape
from backends.tensorrt.library import data_type
from backends.tensorrt.network import NetworkScope
from ir import Arg, Node, Value

_F32 = torch.float32
_BLOCK_FP4 = 16


def _type(s: NetworkScope, dtype: torch.dtype) -> Any:
    return data_type(s.trt, dtype)


def _quantized(s: NetworkScope, x: Any, step: Any, kind: torch.dtype) -> Any:
    """To a narrow type and back, in the type of ``x``."""
    dtype = s.type_of(x)
    step = cast(s, step, dtype)
    narrow = s.layer(s.network.definition.add_quantize(x, step, _type(s, kind)))
    return s.layer(s.network.definition.add_dequantize(narrow, step, _type(s, dtype)))


def _dequantized(s: NetworkScope, x: Any, step: Any, dtype: torch.dtype, axis: int | None = None) -> Any:
    layer = s.network.definition.add_dequantize(x, cast(s, step, dtype), _type(s, dtype))
    if axis is not None:
        layer.axis = axis
    return s.layer(layer)


def _product(s: NetworkScope, x: Any, weight: Any, bias: Any, dtype: torch.dtype) -> Any:
    """``x @ weight.T + bias``."""
    left, right = alike(s, x, weight)
    made = matmul(s, left, right, turn_b=True)
    return made if bias is None else ew(s, "SUM", made, cast(s, bias, dtype))


def _optional(s: NetworkScope, value: Arg) -> Any:
    return s.read(s[value]) if isinstance(value, Value) else None


def int8_linear_static(
    s: NetworkScope, node: Node, x: Value, weight: Value, scale: Value, bias: Arg, x_scale: Value, x_zero: int
) -> Any:
    """``penstock.int8_linear_static`` with activations around zero: TensorRT's int8 has no other."""
    if x_zero != 128:
        raise Refused(f"int8 activations around {x_zero}; TensorRT's are symmetric: quantize with zero 128")
    dtype = result_type(node)
    step, together = s.read(s[x_scale]), s.read(s[scale])
    content = s.read(s[x])
    if rank(step):  # one scale per channel: divided out before, as SmoothQuant does
        content = ew(s, "DIV", content, cast(s, step, dtype))
        step = constant(s, 1.0, dtype)
        own = together
    else:
        own = ew(s, "DIV", together, step)  # ``scale`` is that of weight and activation together
    taken = _quantized(s, content, step, torch.int8)
    wide = _dequantized(s, s.read(s[weight]), own, dtype, axis=0)
    return _product(s, taken, wide, _optional(s, bias), dtype)


def int8_linear_dynamic(s: NetworkScope, node: Node, x: Value, weight: Value, scale: Value, bias: Arg = None) -> Any:
    """Activations around a zero that moves: TensorRT has no such int8."""
    raise Refused("int8 activations around a zero that the data decides; quantize with calibrated, symmetric ones")


def int8_attention(s: NetworkScope, node: Node, *_: Arg) -> Any:
    """Weights of uint8 after the softmax: TensorRT's int8 is symmetric."""
    raise Refused("int8 attention with unsigned weights; TensorRT's int8 is symmetric: use fp16 or fp8 attention")


def quantize(s: NetworkScope, node: Node, x: Value, scale: Arg, zero: Arg, low: Arg, high: Arg, dtype: Arg) -> Any:
    """``quantize_per_tensor`` to int8 around zero."""
    if dtype != torch.int8 or zero != 0 or high != 127 or low not in (-127, -128):
        raise Refused("quantizes otherwise than to int8 around zero, which is all that TensorRT has")
    content = s.read(s[x])
    kind = s.type_of(content)
    made = s.layer(s.network.definition.add_quantize(content, _number(s, scale, kind), _type(s, torch.int8)))
    if low == -127 and any(not user.op.name.startswith("quantized_decomposed.deq") for user in node.result.uses):
        raise Refused("int8 content that is read as numbers; TensorRT only dequantizes it")
    return made


def dequantize(
    s: NetworkScope, node: Node, x: Value, scale: Arg, zero: Arg, low: Arg, high: Arg, dtype: Arg, *_: Arg
) -> Any:
    """``dequantize_per_tensor`` of int8 around zero."""
    if dtype != torch.int8 or zero != 0:
        raise Refused("dequantizes other than int8 around zero, which is all that TensorRT has")
    want = result_type(node)
    return _dequantized(s, s.read(s[x]), _number(s, scale, want), want)


def dequantize_channels(
    s: NetworkScope,
    node: Node,
    x: Value,
    scales: Value,
    zeros: Arg,
    axis: int,
    low: Arg,
    high: Arg,
    dtype: Arg,
    *_: Arg,
) -> Any:
    """``dequantize_per_channel`` of int8 around zero: weights only."""
    around = s.content(s[zeros]) if isinstance(zeros, Value) else torch.zeros(1)
    if dtype != torch.int8 or around is None or bool(around.any()):
        raise Refused("dequantizes other than int8 around zero, which is all that TensorRT has")
    return _dequantized(s, s.read(s[x]), s.read(s[scales]), result_type(node), axis % x.tensor.rank)


def _number(s: NetworkScope, scale: Arg, dtype: torch.dtype) -> Any:
    if isinstance(scale, Value):
        found = s.read(s[scale])
        return cast(s, reshape(s, found, []) if rank(found) else found, dtype)
    assert isinstance(scale, (int, float))
    return constant(s, float(scale), dtype)


def dequantize_int4(s: NetworkScope, node: Node, packed: Value, scale: Value, block: int) -> Any:
    """``penstock.dequantize_int4``: four-bit weights stay packed; a scale per block of the last dim."""
    content = s.content(s[packed])
    if content is None:
        raise Refused("four-bit numbers that are no weight")
    rows, half = content.shape
    name = s.packed_weight("int4", content, s.trt.DataType.INT4, (rows, 2 * half))
    dtype = result_type(node)
    return _dequantized(s, s.read(name), s.read(s[scale]), dtype)


def fp8_linear(s: NetworkScope, node: Node, x: Value, weight: Value, scale: Value, bias: Arg, x_scale: Value) -> Any:
    """``penstock.fp8_linear``."""
    dtype = result_type(node)
    step = s.read(s[x_scale])
    taken = _quantized(s, s.read(s[x]), step, torch.float8_e4m3fn)
    wide = _dequantized(s, s.read(s[weight]), s.read(s[scale]), dtype, axis=0)
    return _product(s, taken, wide, _optional(s, bias), dtype)


def nvfp4_linear(
    s: NetworkScope, node: Node, x: Value, weight: Value, block_scale: Value, scale: Value, bias: Arg, x_scale: Value
) -> Any:
    """``penstock.nvfp4_linear``: blocks of 16, fp8 scales against one f32 scale, on both sides."""
    dtype = result_type(node)
    content = s.content(s[weight])
    if content is None:
        raise Refused("four-bit numbers that are no weight")
    rows, half = content.shape
    types, definition = s.trt.DataType, s.network.definition
    name = s.packed_weight("fp4", content, types.FP4, (rows, 2 * half))
    steps = _dequantized(s, s.read(s[block_scale]), cast(s, s.read(s[scale]), dtype), dtype)
    wide = s.layer(definition.add_dequantize(s.read(name), steps, _type(s, dtype)))
    given = s.read(s[x])
    whole = cast(s, s.read(s[x_scale]), dtype)
    layer = definition.add_dynamic_quantize(given, rank(given) - 1, _BLOCK_FP4, types.FP4, types.FP8)
    layer.set_input(1, whole)
    narrow, own = s.layer(layer), s.check(layer.get_output(1))
    taken_steps = _dequantized(s, own, whole, dtype)
    taken = s.layer(definition.add_dequantize(narrow, taken_steps, _type(s, dtype)))
    return _product(s, taken, wide, _optional(s, bias), dtype)


_DOMAIN = "quantized_decomposed"
FORMATS: Mapping[str, Callable[..., Any]] = {
    "penstock.int8_linear_static.default": int8_linear_static,
    "penstock.int8_linear_dynamic.default": int8_linear_dynamic,
    "penstock.int8_attention.default": int8_attention,
    "penstock.dequantize_int4.default": dequantize_int4,
    "penstock.fp8_linear.default": fp8_linear,
    "penstock.nvfp4_linear.default": nvfp4_linear,
    f"{_DOMAIN}.quantize_per_tensor.default": quantize,
    f"{_DOMAIN}.dequantize_per_tensor.default": dequantize,
    f"{_DOMAIN}.dequantize_per_channel.default": dequantize_channels,
}
