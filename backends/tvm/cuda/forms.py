"""What CUDA kernels compute in their own way."""

from __future__ import annotations

from typing import Any

import torch

from backends.tvm.quantized import activation_step, finish, integer_product, quantized, row_sums
from backends.tvm.scalars import Functions
from backends.tvm.scope import Forms, Scope, Tensor
from ir import Arg, Node, Value

_SHIFT = 128
_PRECISE = ("exp", "log", "sin", "cos", "tan", "tanh")


class CudaFunctions(Functions):
    """CUDA's own functions of f32 by name: TVM would take the fast ones, whose sine of a large angle is no sine."""

    def call(self, name: str, x: Any) -> Any:
        """A function by its TIR name."""
        from tvm import tirx

        if name in _PRECISE and str(x.ty.dtype) == "float32":
            return tirx.call_pure_extern("float32", f"{name}f", x)
        return super().call(name, x)


def int8_linear_dynamic(s: Scope, node: Node, x: Value, weight: Value, scale: Value, bias: Arg = None) -> Tensor:
    """``penstock.int8_linear_dynamic`` with both operands signed."""
    step, zero = activation_step(s, s[x])
    q = _signed(s, quantized(s, s[x], step, zero))
    shifted = s.pointwise("zero", torch.int32, lambda z: z - _SHIFT, [zero])
    both = s.pointwise("scale", torch.float32, lambda a, b: a * b, [step, scale])
    return finish(s, node, integer_product(s, q, s[weight]), row_sums(s, s[weight]), shifted, both, bias)


def int8_linear_static(
    s: Scope, node: Node, x: Value, weight: Value, scale: Value, bias: Arg, x_scale: Value, x_zero: int
) -> Tensor:
    """``penstock.int8_linear_static`` with both operands signed."""
    q = _signed(s, quantized(s, s[x], s[x_scale], x_zero))
    product = integer_product(s, q, s[weight])
    return finish(s, node, product, row_sums(s, s[weight]), x_zero - _SHIFT, s[scale], bias)


def _signed(s: Scope, q: Tensor) -> Tensor:
    """uint8 as int8, 128 less: tensor cores multiply operands of one kind. The zero point moves with it, exactly."""
    return s.pointwise("signed", torch.int8, lambda v: v - _SHIFT, [q], torch.int32)


FORMS = Forms(
    emitters={
        "penstock.int8_linear_dynamic.default": int8_linear_dynamic,
        "penstock.int8_linear_static.default": int8_linear_static,
    },
    functions=CudaFunctions(),
)
