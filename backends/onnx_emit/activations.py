"""Activation functions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from backends.arguments import Refused, number, result_type
from backends.onnx_emit.arithmetic import clamp
from backends.onnx_emit.pointwise import Emitter
from backends.onnx_emit.scope import Scope
from ir import Arg, Node, Value


def relu(s: Scope, node: Node, x: Value) -> str:
    """``max(x, 0)``; engines have it for floats."""
    return s.op("Relu", s[x]) if result_type(node).is_floating_point else clamp(s, node, x, 0)


def relu6(s: Scope, node: Node, x: Value) -> str:
    """``min(max(x, 0), 6)``."""
    return hardtanh(s, node, x, 0, 6)


def silu(s: Scope, node: Node, x: Value) -> str:
    """``x * sigmoid(x)``, the pair that both engines fuse."""
    return s.op("Mul", s[x], s.op("Sigmoid", s[x]))


def gelu(s: Scope, node: Node, x: Value, approximate: Arg = "none") -> str:
    """Exact or by tanh."""
    return s.op("Gelu", s[x], approximate="tanh" if approximate == "tanh" else None)


def leaky_relu(s: Scope, node: Node, x: Value, slope: Arg = 0.01) -> str:
    """``aten.leaky_relu``."""
    return s.op("LeakyRelu", s[x], alpha=number(slope))


def elu(s: Scope, node: Node, x: Value, alpha: Arg = 1, scale: Arg = 1, input_scale: Arg = 1) -> str:
    """``aten.elu``; ONNX knows alpha only."""
    if scale == 1 and input_scale == 1:
        return s.op("Elu", s[x], alpha=number(alpha))
    dtype = result_type(node)
    zero = s.const(0, dtype)
    grown = s.op("Exp", s.op("Mul", s[x], s.tensor(input_scale, dtype)))
    below = s.op("Mul", s.op("Sub", grown, s.const(1, dtype)), s.const(number(alpha) * number(scale), dtype))
    return s.op("Where", s.op("Greater", s[x], zero), s.op("Mul", s[x], s.tensor(scale, dtype)), below)


def selu(s: Scope, node: Node, x: Value) -> str:
    """``aten.selu``."""
    return s.op("Selu", s[x])


def celu(s: Scope, node: Node, x: Value, alpha: Arg = 1.0) -> str:
    """``aten.celu``."""
    return elu(s, node, x, alpha, 1, 1 / number(alpha))


def softplus(s: Scope, node: Node, x: Value, beta: Arg = 1, threshold: Arg = 20) -> str:
    """``log(1 + exp(beta x)) / beta``, linear above the threshold as in torch."""
    dtype = result_type(node)
    scaled = s[x] if beta == 1 else s.op("Mul", s[x], s.tensor(beta, dtype))
    curved = s.op("Softplus", scaled)
    if beta != 1:
        curved = s.op("Div", curved, s.tensor(beta, dtype))
    return s.op("Where", s.op("Greater", scaled, s.tensor(threshold, dtype)), s[x], curved)


def log_sigmoid(s: Scope, node: Node, x: Value) -> str:
    """``-softplus(-x)``."""
    return s.op("Neg", s.op("Softplus", s.op("Neg", s[x])))


def mish(s: Scope, node: Node, x: Value) -> str:
    """``x * tanh(softplus(x))``."""
    return s.op("Mul", s[x], s.op("Tanh", s.op("Softplus", s[x])))


def hardtanh(s: Scope, node: Node, x: Value, low: Arg = -1, high: Arg = 1) -> str:
    """``aten.hardtanh``."""
    dtype = result_type(node)
    return s.op("Min", s.op("Max", s[x], s.tensor(low, dtype)), s.tensor(high, dtype))


def hardsigmoid(s: Scope, node: Node, x: Value) -> str:
    """``clamp(x / 6 + 1/2, 0, 1)``."""
    return s.op("HardSigmoid", s[x], alpha=1 / 6, beta=0.5)


def hardswish(s: Scope, node: Node, x: Value) -> str:
    """``x * hardsigmoid(x)``."""
    return s.op("Mul", s[x], hardsigmoid(s, node, x))


def prelu(s: Scope, node: Node, x: Value, weight: Value) -> str:
    """Slope per channel below zero."""
    rank, slope = x.tensor.rank, s[weight]
    if weight.tensor.rank == 1 and rank > 2 and weight.tensor.shape != (1,):
        slope = s.op("Reshape", slope, s.ints(-1, *[1] * (rank - 2)))
    return s.op("Where", s.op("Greater", s[x], s.const(0, result_type(node))), s[x], s.op("Mul", s[x], slope))


def glu(s: Scope, node: Node, x: Value, dim: int = -1) -> str:
    """``a * sigmoid(b)`` of the two halves."""
    a, b = s.ops("Split", 2, s[x], axis=dim, num_outputs=2)
    return s.op("Mul", a, s.op("Sigmoid", b))


def threshold(s: Scope, node: Node, x: Value, limit: Arg, value: Arg) -> str:
    """``x`` above the limit, else a number."""
    dtype = result_type(node)
    below = s.op("LessOrEqual", s[x], s.tensor(limit, dtype))  # NaN stays
    return s.op("Where", below, s.tensor(value, dtype), s[x])


def logit(s: Scope, node: Node, x: Value, eps: Arg = None) -> str:
    """``log(x / (1 - x))``."""
    dtype = result_type(node)
    name = s.tensor(x, dtype)
    if eps is not None:
        name = s.op("Min", s.op("Max", name, s.tensor(eps, dtype)), s.const(1 - number(eps), dtype))
    return s.op("Log", s.op("Div", name, s.op("Sub", s.const(1, dtype), name)))


def softmax(log: bool = False) -> Emitter:
    """Softmax in the type asked for; the half precisions are computed in f32, as torch does."""

    def emit(s: Scope, node: Node, x: Value, dim: int, *_: Arg) -> str:
        dtype = result_type(node)
        kind = "LogSoftmax" if log else "Softmax"
        if not x.tensor.rank:
            raise Refused("softmax of a single number")
        return s.op(kind, s.tensor(x, dtype), axis=dim)

    return emit


def softshrink(s: Scope, node: Node, x: Value, lambd: Arg = 0.5) -> str:
    """``aten.softshrink``."""
    dtype = result_type(node)
    near, by = _within(s, s[x], lambd, dtype), s.tensor(lambd, dtype)
    moved = s.op("Where", s.op("Greater", s[x], by), s.op("Sub", s[x], by), s.op("Add", s[x], by))
    return s.op("Where", near, s.const(0, dtype), moved)


def hardshrink(s: Scope, node: Node, x: Value, lambd: Arg = 0.5) -> str:
    """``aten.hardshrink``."""
    dtype = result_type(node)
    return s.op("Where", _within(s, s[x], lambd, dtype), s.const(0, dtype), s[x])


def _within(s: Scope, x: str, bound: Arg, dtype: torch.dtype) -> str:
    return s.op("LessOrEqual", s.op("Abs", x), s.tensor(bound, dtype))


def erfc(s: Scope, node: Node, x: Value) -> str:
    """``1 - erf(x)``."""
    dtype = result_type(node)
    return s.op("Sub", s.const(1, dtype), s.op("Erf", s.tensor(x, dtype)))


def sinc(s: Scope, node: Node, x: Value) -> str:
    """``sin(pi x) / (pi x)``."""
    dtype = result_type(node)
    angle = s.op("Mul", s.tensor(x, dtype), s.const(math.pi, dtype))
    # below the normal numbers some engines divide by zero
    at_zero = s.op("Less", s.op("Abs", angle), s.const(torch.finfo(dtype).tiny, dtype))
    one = s.const(1, dtype)
    return s.op("Where", at_zero, one, s.op("Div", s.op("Sin", angle), s.op("Where", at_zero, one, angle)))


ACTIVATIONS: Mapping[str, Emitter] = {
    "aten.relu.default": relu,
    "aten.relu6.default": relu6,
    "aten.silu.default": silu,
    "aten.gelu.default": gelu,
    "aten.leaky_relu.default": leaky_relu,
    "aten.elu.default": elu,
    "aten.selu.default": selu,
    "aten.celu.default": celu,
    "aten.softplus.default": softplus,
    "aten.log_sigmoid.default": log_sigmoid,
    "aten.mish.default": mish,
    "aten.hardtanh.default": hardtanh,
    "aten.hardsigmoid.default": hardsigmoid,
    "aten.hardswish.default": hardswish,
    "aten.prelu.default": prelu,
    "aten._prelu_kernel.default": prelu,
    "aten.glu.default": glu,
    "aten.threshold.default": threshold,
    "aten.logit.default": logit,
    "aten.softshrink.default": softshrink,
    "aten.hardshrink.default": hardshrink,
    "aten.special_erfc.default": erfc,
    "aten.erfc.default": erfc,
    "aten.sinc.default": sinc,
    **{f"aten.{name}": softmax() for name in ("softmax.int", "_softmax.default")},
    **{f"aten.{name}": softmax(log=True) for name in ("log_softmax.int", "_log_softmax.default")},
}
