"""int4, fp8 and NVFP4 in primitive operators: the twin by which an engine for another machine is judged.

Weights stay packed in the weights file; engines unpack them when they load. Products are in float32, as the meaning
of these operators says: none of this is fast, all of it is exact up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from backends.arguments import Refused, result_type
from backends.onnx_emit.dtypes import onnx_type
from backends.onnx_emit.pointwise import Emitter
from backends.onnx_emit.scope import Scope
from ir import Arg, Dim, Node, Value
from ir.narrow import E2M1, E2M1_MAX, E4M3, E4M3_MAX, NVFP4_BLOCK

_F32 = torch.float32
_INT4 = tuple(code if code < 8 else code - 16 for code in range(16))
_SMALLEST_NORMAL = 2.0**-6
_SUBNORMAL_STEP = 2.0**-9


def dequantize_int4(s: Scope, node: Node, packed: Value, scale: Value, block: int) -> str:
    """``penstock.dequantize_int4``: in float32 ``q * scale`` is exact, so that one rounding is left as in torch."""
    shape = _known(packed.tensor.shape)
    blocks = (*scale.tensor.shape, block)
    q = s.op("Reshape", _halves(s, packed, _INT4), s.ints(*_known(blocks)))
    step = s.op("Unsqueeze", s.cast(s[scale], scale.tensor.dtype, _F32), s.ints(-1))
    made = s.op("Reshape", s.op("Mul", q, step), s.ints(*shape[:-1], 2 * shape[-1]))
    return s.cast(made, _F32, result_type(node))


def fp8_linear(s: Scope, node: Node, x: Value, weight: Value, scale: Value, bias: Arg, x_scale: Value) -> str:
    """``penstock.fp8_linear``."""
    left = _rounded_to_e4m3(s, s.op("Div", s.cast(s[x], x.tensor.dtype, _F32), s[x_scale]))
    right = s.transpose(s.cast(s[weight], E4M3, _F32), (1, 0))  # ONNX Runtime transposes no e4m3
    return _scaled(s, node, s.op("MatMul", left, right), s.op("Mul", s[x_scale], s[scale]), bias)


def nvfp4_linear(
    s: Scope, node: Node, x: Value, weight: Value, block_scale: Value, scale: Value, bias: Arg, x_scale: Value
) -> str:
    """``penstock.nvfp4_linear``: both factors as ``q * block_scale``."""
    shape = _known(block_scale.tensor.shape)
    blocks = s.op("Reshape", _halves(s, weight, E2M1), s.ints(*shape, NVFP4_BLOCK))
    step = s.op("Unsqueeze", s.cast(s[block_scale], E4M3, _F32), s.ints(-1))
    right = s.op("Reshape", s.op("Mul", blocks, step), s.ints(shape[0], shape[1] * NVFP4_BLOCK))
    left = _nvfp4_rows(s, x, x_scale)
    product = s.op("MatMul", left, s.transpose(right, (1, 0)))
    return _scaled(s, node, product, s.op("Mul", s[x_scale], s[scale]), bias)


def _nvfp4_rows(s: Scope, x: Value, x_scale: Value) -> str:
    """Activations as ``q * block_scale``, the form of ``ir.narrow.nvfp4_values``."""
    have = x.tensor.shape
    want = (*have[:-1], have[-1] // NVFP4_BLOCK, NVFP4_BLOCK)
    wide = s.op("Div", s.cast(s[x], x.tensor.dtype, _F32), s[x_scale])
    blocks = s.reshape(wide, have, want)
    reach = s.op("ReduceMax", s.op("Abs", blocks), s.ints(-1), keepdims=1)
    step = _rounded_to_e4m3(s, s.op("Div", reach, s.const(E2M1_MAX, _F32)))
    zero, one = s.const(0.0, _F32), s.const(1.0, _F32)
    empty = s.op("Equal", step, zero)
    content = _rounded_to_e2m1(s, s.op("Div", blocks, s.op("Where", empty, one, step)))
    return s.reshape(s.op("Mul", content, step), want, have)


def _scaled(s: Scope, node: Node, product: str, scale: str, bias: Arg) -> str:
    made = s.op("Mul", product, scale)
    if isinstance(bias, Value):
        made = s.op("Add", made, s.cast(s[bias], bias.tensor.dtype, _F32))
    return s.cast(made, _F32, result_type(node))


def _known(shape: Sequence[Dim]) -> tuple[int, ...]:
    if not all(isinstance(d, int) for d in shape):
        raise Refused("packed weights of a size that is not known")
    return tuple(d for d in shape if isinstance(d, int))


def _halves(s: Scope, packed: Value, values: Sequence[float]) -> str:
    """Both elements of each byte, looked up: u8 ``[..., B]`` -> f32 ``[..., B, 2]``."""
    scope = s.root if s.is_constant(s[packed]) else s
    table = s.const([[values[byte & 15], values[byte >> 4]] for byte in range(256)], _F32)
    return scope.op("Gather", table, scope.op("Cast", s[packed], to=onnx_type(torch.int32)), axis=0)


def _rounded_to_e4m3(s: Scope, x: str) -> str:
    """``to_e4m3(x)`` in float32."""
    clipped = s.op("Clip", x, s.const(-E4M3_MAX, _F32), s.const(E4M3_MAX, _F32))
    rounded = s.cast(s.cast(clipped, _F32, E4M3), E4M3, _F32)
    if s.flavor != "openvino":
        return rounded
    # OpenVINO breaks ties between subnormals the wrong way
    step = s.const(_SUBNORMAL_STEP, _F32)
    small = s.op("Mul", s.op("Round", s.op("Div", clipped, step)), step)
    return s.op("Where", s.op("Less", s.op("Abs", clipped), s.const(_SMALLEST_NORMAL, _F32)), small, rounded)


def _rounded_to_e2m1(s: Scope, x: str) -> str:
    """``to_e2m1(x)``: ties to even of ``x / step`` are ties to the even code."""
    half, one, two, four = (s.const(value, _F32) for value in (0.5, 1.0, 2.0, 4.0))
    clipped = s.op("Clip", x, s.const(-E2M1_MAX, _F32), s.const(E2M1_MAX, _F32))
    reach = s.op("Abs", clipped)
    step = s.op("Where", s.op("Less", reach, two), half, s.op("Where", s.op("Less", reach, four), one, two))
    return s.op("Mul", s.op("Round", s.op("Div", clipped, step)), step)


NARROW: Mapping[str, Emitter] = {
    "penstock.dequantize_int4.default": dequantize_int4,
    "penstock.fp8_linear.default": fp8_linear,
    "penstock.nvfp4_linear.default": nvfp4_linear,
}
