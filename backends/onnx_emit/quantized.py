"""Int8: linears with activations quantized while they run, and quantize/dequantize pairs."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from backends.arguments import Refused, result_type
from backends.onnx_emit.pointwise import Emitter
from backends.onnx_emit.scope import MICROSOFT, Scope
from ir import Arg, Node, Value

_F32 = torch.float32
_DOMAIN = "quantized_decomposed"


def int8_linear_dynamic(s: Scope, node: Node, x: Value, weight: Value, scale: Value, bias: Arg = None) -> str:
    """``penstock.int8_linear_dynamic``: linears that read the same ``x`` share its quantization."""
    if s.flavor == "openvino":
        raise Refused("OpenVINO has no integer form of it; quantize with calibrated activations instead")
    wide = s.cast(s[x], x.tensor.dtype, _F32)
    content, step, zero = s.ops("DynamicQuantizeLinear", 3, wide)
    product = s.op("MatMulInteger", content, s.transpose(s[weight], (1, 0)), zero)
    # the order that ORT recognises and fuses: Cast, Mul by both scales, Add
    made = s.op("Mul", s.op("Cast", product, to=1), s.op("Mul", step, s[scale]))
    if isinstance(bias, Value):
        made = s.op("Add", made, s[bias])
    return s.cast(made, _F32, result_type(node))


def int8_linear_static(
    s: Scope, node: Node, x: Value, weight: Value, scale: Value, bias: Arg, x_scale: Value, x_zero: int
) -> str:
    """``penstock.int8_linear_static``: the integer product of each engine.

    ONNX Runtime runs ``MatMulIntegerToFloat``; OpenVINO finds the product between quantize/dequantize pairs.
    """
    dtype = result_type(node)
    zero, one = s.const(x_zero, torch.uint8), s.const(1, _F32)
    added = s[bias] if isinstance(bias, Value) else None

    def content(name: str) -> str:
        wide, step = s.cast(name, x.tensor.dtype, _F32), s[x_scale]
        if x_scale.tensor.rank:  # one scale per channel: ONNX quantizes by one, so it is divided out before
            wide, step = s.op("Mul", wide, s.root.op("Reciprocal", step)), one
        return s.op("QuantizeLinear", wide, step, zero)

    if s.flavor == "onnxruntime":
        matrix = s.transpose(s[weight], (1, 0))
        parts = (content(s[x]), matrix, one, s[scale], zero, None, added)
        return s.cast(s.op("MatMulIntegerToFloat", *parts, domain=MICROSOFT), _F32, dtype)
    left = s.op("DequantizeLinear", content(s[x]), one, zero)
    # OpenVINO's own orientation: dequantized along the rows, then transposed
    wide_weight = s.root.op("DequantizeLinear", s[weight], s[scale], axis=0)
    made = s.op("MatMul", left, s.transpose(wide_weight, (1, 0)))
    return s.cast(made if added is None else s.op("Add", made, added), _F32, dtype)


def _zero_type(dtype: Arg, low: Arg, high: Arg) -> torch.dtype:
    if not isinstance(dtype, torch.dtype):
        raise Refused("a quantized type that is no type")
    bounds = {torch.int8: (-128, 127), torch.uint8: (0, 255)}.get(dtype)
    if bounds is None:
        raise Refused(f"quantizes to {dtype}; int8 and uint8 are known")
    if (low, high) != bounds and (low, high) != (-127, 127):
        raise Refused(f"quantizes to the range {low} .. {high} of {dtype}")
    return dtype


def quantize(s: Scope, node: Node, x: Value, scale: Arg, zero: Arg, low: Arg, high: Arg, dtype: Arg) -> str:
    """``quantize_per_tensor`` with numbers that are known."""
    type_ = _zero_type(dtype, low, high)
    step = s.tensor(scale, _F32)
    wide = s.cast(s[x], x.tensor.dtype, _F32)
    made = s.op("QuantizeLinear", wide, step, s.tensor(zero, type_))
    if type_ is torch.int8 and low == -127:
        made = s.op("Max", made, s.const(-127, type_))
    return made


def dequantize(s: Scope, node: Node, x: Value, scale: Arg, zero: Arg, low: Arg, high: Arg, dtype: Arg, *_: Arg) -> str:
    """``dequantize_per_tensor``."""
    made = s.op("DequantizeLinear", s[x], s.tensor(scale, _F32), s.tensor(zero, _zero_type(dtype, low, high)))
    return s.cast(made, _F32, result_type(node))


def dequantize_channels(
    s: Scope,
    node: Node,
    x: Value,
    scales: Value,
    zeros: Arg,
    axis: int,
    low: Arg,
    high: Arg,
    dtype: Arg,
    *_: Arg,
) -> str:
    """``dequantize_per_channel``; weights of linears are transposed before, see ``transposed_weight``."""
    made = _channels(s, s[x], scales, zeros, axis % x.tensor.rank, x)
    return s.cast(made, _F32, result_type(node))


def _channels(s: Scope, name: str, scales: Value, zeros: Arg, axis: int, x: Value) -> str:
    step = s.cast(s[scales], scales.tensor.dtype, _F32)
    scope = s.root if s.is_constant(step) else s
    shift = None
    if isinstance(zeros, Value):
        shift = scope.cast(s[zeros], zeros.tensor.dtype, x.tensor.dtype)
    return scope.op("DequantizeLinear", name, step, shift, axis=axis)


def transposed_weight(s: Scope, weight: Value) -> str:
    """The transpose of a linear's weight.

    Of a dequantized weight the int8 content is transposed, so that its dequantization is what the product reads;
    OpenVINO wants it the other way round.
    """
    node = weight.producer
    per_channel = node is not None and node.op.name == f"{_DOMAIN}.dequantize_per_channel.default"
    if node is None or not per_channel or s.flavor == "openvino" or result_type(node) != _F32:
        return s.transpose(s[weight], (1, 0))
    x, scales, zeros, axis = node.args[:4]
    assert isinstance(x, Value) and isinstance(scales, Value) and isinstance(axis, int)
    if not s.is_constant(s[x]):
        return s.transpose(s[weight], (1, 0))
    return _channels(s, s.transpose(s[x], (1, 0)), scales, zeros, 1 - axis % 2, x)


QUANTIZED: Mapping[str, Emitter] = {
    "penstock.int8_linear_dynamic.default": int8_linear_dynamic,
    "penstock.int8_linear_static.default": int8_linear_static,
    f"{_DOMAIN}.quantize_per_tensor.default": quantize,
    f"{_DOMAIN}.dequantize_per_tensor.default": dequantize,
    f"{_DOMAIN}.dequantize_per_channel.default": dequantize_channels,
}
