"""Int8: linears with quantized activations, and quantize/dequantize, in their plain forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from backends.arguments import Refused, number, result_type, shape_of
from backends.tvm.dtypes import axis_of, cast, literal
from backends.tvm.reductions import fold
from backends.tvm.scalars import constant
from backends.tvm.scope import Emitter, Kernel, Scope, Tensor
from ir import Arg, Node, Value

_F32 = torch.float32
_DOMAIN = "quantized_decomposed"


def clipped(x: Any, low: float, high: float) -> Any:
    """A float between two bounds."""
    from tvm import tirx

    return tirx.max(tirx.min(x, constant(high, x)), constant(low, x))


def activation_step(s: Scope, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point (as f32) of a whole tensor in uint8, over ``[min(x, 0), max(x, 0)]``."""
    from tvm import tirx

    axes = list(range(x.rank))
    low, high = (fold(s, how, x, axes, False, _F32, how) for how in ("min", "max"))

    def step(a: Any, b: Any) -> Any:
        zero = constant(0, a)
        gap = (tirx.max(b, zero) - tirx.min(a, zero)) / constant(255, a)
        return tirx.Select(gap == 0, constant(1, a), gap)

    scale = s.pointwise("step", _F32, step, [low, high])
    zero = s.pointwise(
        "zero", _F32,
        lambda a, d: clipped(tirx.nearbyint(-tirx.min(a, constant(0, a)) / d), 0, 255), [low, scale],
    )  # fmt: skip
    return scale, zero


def quantized(s: Scope, x: Tensor, scale: Tensor, zero: Tensor | int) -> Tensor:
    """``clamp(round(x / scale) + zero, 0, 255)`` as uint8."""
    from tvm import tirx

    def f(v: Any, d: Any, z: Any) -> Any:
        return clipped(tirx.nearbyint(v / d) + z, 0, 255)

    return s.pointwise("quantize", torch.uint8, f, [x, scale, zero], _F32, x.shape)


def integer_product(s: Scope, q: Tensor, weight: Tensor) -> Tensor:
    """``q @ weight^T`` of uint8 by int8 in int32."""
    from tvm import te

    depth, shape = weight.shape[1], (*q.shape[:-1], weight.shape[0])

    def build(k: Kernel, a: Any, w: Any) -> Any:
        loop = te.reduce_axis((literal(0, torch.int64), k.dim(depth)), name="r")

        def element(*i: Any) -> Any:
            left = cast(a(*i[:-1], loop.var), torch.int32)
            return te.sum(left * cast(w(i[-1], loop.var), torch.int32), axis=loop)

        return te.compute(k.shape(shape), element, name="int8_matmul")

    return s.te("int8_matmul", build, [q, weight], [(torch.int32, shape)])[0]


def row_sums(s: Scope, weight: Tensor) -> Tensor:
    """What a zero point of one adds to each output."""
    return fold(s, "sums", weight, [1], False, torch.int32, "sum")


def finish(s: Scope, node: Node, product: Tensor, sums: Tensor, zero: Tensor | int, scale: Tensor, bias: Arg) -> Tensor:
    """``(product - zero * sums) * scale + bias``, the first part in whole numbers."""

    def f(p: Any, w: Any, z: Any, d: Any, *b: Any) -> Any:
        made = cast(p - w * z, _F32) * d
        return made + b[0] if b else made

    args: list[Any] = [product, sums, zero, scale]
    types = [torch.int32, torch.int32, torch.int32, _F32]
    if bias is not None:
        args, types = [*args, bias], [*types, _F32]
    return s.reshape(s.pointwise("dequantize", result_type(node), f, args, types), shape_of(node))


def int8_linear_dynamic(s: Scope, node: Node, x: Value, weight: Value, scale: Value, bias: Arg = None) -> Tensor:
    """``penstock.int8_linear_dynamic``."""
    step, zero = activation_step(s, s[x])
    q = quantized(s, s[x], step, zero)
    both = s.pointwise("scale", _F32, lambda a, b: a * b, [step, scale])
    return finish(s, node, integer_product(s, q, s[weight]), row_sums(s, s[weight]), zero, both, bias)


def int8_linear_static(
    s: Scope, node: Node, x: Value, weight: Value, scale: Value, bias: Arg, x_scale: Value, x_zero: int
) -> Tensor:
    """``penstock.int8_linear_static``."""
    q = quantized(s, s[x], s[x_scale], x_zero)
    return finish(s, node, integer_product(s, q, s[weight]), row_sums(s, s[weight]), x_zero, s[scale], bias)


def _bounds(dtype: Arg, low: Arg, high: Arg) -> tuple[torch.dtype, float, float]:
    if dtype not in (torch.int8, torch.uint8) or not isinstance(dtype, torch.dtype):
        raise Refused(f"quantizes to {dtype}; int8 and uint8 are known")
    return dtype, number(low), number(high)


def quantize(s: Scope, node: Node, x: Value, scale: Arg, zero: Arg, low: Arg, high: Arg, dtype: Arg) -> Tensor:
    """``quantize_per_tensor``."""
    from tvm import tirx

    type_, least, most = _bounds(dtype, low, high)

    def f(v: Any, d: Any, z: Any) -> Any:
        return clipped(tirx.nearbyint(v * (constant(1, d) / d)) + z, least, most)

    return s.pointwise("quantize", type_, f, [x, scale, zero], _F32, x.tensor.shape)


def dequantize(s: Scope, node: Node, x: Value, scale: Arg, zero: Arg, *_: Arg) -> Tensor:
    """``dequantize_per_tensor``."""
    return s.pointwise(
        "dequantize", result_type(node), lambda v, d, z: (v - z) * d, [x, scale, zero], _F32, x.tensor.shape
    )


def dequantize_channels(s: Scope, node: Node, x: Value, scales: Value, zeros: Arg, axis: int, *_: Arg) -> Tensor:
    """``dequantize_per_channel``."""
    rank = x.tensor.rank
    shape = tuple(x.tensor.shape[d] if d == axis_of(rank, axis) else 1 for d in range(rank))
    step = s.reshape(s[scales], shape)
    if zeros is None:
        return s.pointwise("dequantize", result_type(node), lambda v, d: v * d, [x, step], _F32)
    return s.pointwise(
        "dequantize", result_type(node), lambda v, d, z: (v - z) * d, [x, step, s.reshape(s[zeros], shape)], _F32
    )


def dequantize_int4(s: Scope, node: Node, packed: Value, scale: Value, block: int) -> Tensor:
    """``penstock.dequantize_int4``: two numbers a byte, the low one first, one scale per block of a row."""
    from tvm import tirx

    dtype = result_type(node)

    def body(k: Kernel, index: Any, bytes_: Any, steps: Any) -> Any:
        row, column = index
        pair = tirx.Cast("int32", bytes_(row, tirx.floordiv(column, 2)))
        nibble = (pair >> (tirx.Cast("int32", tirx.floormod(column, 2)) * 4)) & 15
        q = tirx.Select(nibble > 7, nibble - 16, nibble)
        return cast(cast(q, _F32) * cast(steps(row, tirx.floordiv(column, block)), _F32), dtype)

    return s.compute("dequantize", shape_of(node), dtype, body, s[packed], s[scale])


QUANTIZED: Mapping[str, Emitter] = {
    "penstock.int8_linear_dynamic.default": int8_linear_dynamic,
    "penstock.int8_linear_static.default": int8_linear_static,
    "penstock.dequantize_int4.default": dequantize_int4,
    f"{_DOMAIN}.quantize_per_tensor.default": quantize,
    f"{_DOMAIN}.dequantize_per_tensor.default": dequantize,
    f"{_DOMAIN}.dequantize_per_channel.default": dequantize_channels,
}
