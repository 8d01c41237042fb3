"""Activation functions, as formulas of one element."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from backends.arguments import number, result_type
from backends.tvm.pointwise import Formula, absolute, apply, select, short
from backends.tvm.scalars import constant, maximum, minimum
from backends.tvm.scope import Emitter, Scope, Tensor
from ir import Arg, Node, Value


def gelu(s: Scope, node: Node, x: Value, approximate: Arg = "none") -> Tensor:
    """Exact or by tanh."""
    return s.pointwise("gelu", result_type(node), gelu_of(s.math, approximate == "tanh"), [x])


def gelu_of(m: Any, by_tanh: bool) -> Formula:
    """The formula of gelu."""

    def f(x: Any) -> Any:
        half, one = constant(0.5, x), constant(1, x)
        if by_tanh:
            inner = constant(math.sqrt(2 / math.pi), x) * (x + constant(0.044715, x) * x * x * x)
            return half * x * (one + m.tanh(inner))
        return half * x * (one + m.erf(x * constant(math.sqrt(0.5), x)))

    return f


def _softplus(m: Any, x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    scaled = x * constant(beta, x)
    calm = select(scaled > constant(threshold, x), constant(0, x), scaled)
    return select(scaled > constant(threshold, x), x, m.log1p(m.exp(calm)) / constant(beta, x))


def _mish(m: Any, x: Any) -> Any:
    """``x * tanh(log(1 + e))`` with ``e = exp(x)``, of which ``tanh log`` makes a fraction.

    Written as it reads, each function would be written out as often as the next reads it: LLVM took a minute.
    """
    e, two = m.exp(x), constant(2, x)
    return x / (constant(1, x) + two / (e * (e + two)))


def _log_sigmoid(m: Any, x: Any) -> Any:
    low = select(x < 0, x, constant(0, x))
    return low - m.log1p(m.exp(-absolute(m, x)))


def _elu(m: Any, x: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    below = m.expm1(x * constant(input_scale, x)) * constant(alpha * scale, x)
    return select(x > 0, x * constant(scale, x), below)


def _hard_sigmoid(m: Any, x: Any) -> Any:
    return minimum(maximum(x + constant(3, x), constant(0, x)), constant(6, x)) / constant(6, x)


def _softshrink(m: Any, x: Any, a: float) -> Any:
    outside = select(x > 0, x - constant(a, x), x + constant(a, x))
    return select(absolute(m, x) <= constant(a, x), constant(0, x), outside)


def _sinc(m: Any, x: Any) -> Any:
    angle = x * constant(math.pi, x)
    safe = select(angle == 0, constant(1, x), angle)
    return select(angle == 0, constant(1, x), m.call("sin", safe) / safe)


def with_numbers(f: Formula, *defaults: float) -> Emitter:
    """A formula of one operand and numbers that are known."""

    def emit(s: Scope, node: Node, x: Value, *rest: Arg) -> Tensor:
        numbers = [number(r) for r in rest[: len(defaults)]]
        numbers += defaults[len(numbers) :]
        return s.pointwise(short(node), result_type(node), lambda v: f(s.math, v, *numbers), [x])

    return emit


def prelu(s: Scope, node: Node, x: Value, weight: Value) -> Tensor:
    """Slope per channel below zero."""
    slope = s[weight]
    if slope.rank == 1 and x.tensor.rank > 2:
        slope = s.reshape(slope, (*slope.shape, *[1] * (x.tensor.rank - 2)))
    return s.pointwise("prelu", result_type(node), lambda v, w: select(v < 0, v * w, v), [x, slope])


def glu(s: Scope, node: Node, x: Value, dim: int = -1) -> Tensor:
    """``a * sigmoid(b)`` of the two halves."""
    shape, dtype = node.results[0].tensor.shape, result_type(node)
    axis = dim % len(shape)

    def body(k: Any, index: Any, t: Any) -> Any:
        other = list(index)
        other[axis] = index[axis] + k.dim(shape[axis])
        return t(*index) * s.math.sigmoid(t(*other))

    return s.compute("glu", shape, dtype, body, s[x])


def logit(s: Scope, node: Node, x: Value, eps: Arg = None) -> Tensor:
    """``log(x / (1 - x))``."""

    def f(v: Any) -> Any:
        if eps is not None:
            v = minimum(maximum(v, constant(number(eps), v)), constant(1 - number(eps), v))
        return s.math.log(v / (constant(1, v) - v))

    return s.pointwise("logit", result_type(node), f, [x])


_FORMULAS: Mapping[str, Formula] = {
    "relu": lambda m, x: maximum(x, constant(0, x)),
    "relu6": lambda m, x: minimum(maximum(x, constant(0, x)), constant(6, x)),
    "silu": lambda m, x: x * m.sigmoid(x), "selu": lambda m, x: _elu(m, x, 1.6732632423543772, 1.0507009873554805),
    "log_sigmoid": _log_sigmoid, "mish": _mish, "hardsigmoid": _hard_sigmoid,
    "hardswish": lambda m, x: x * _hard_sigmoid(m, x), "sinc": _sinc,
}  # fmt: skip
_NUMBERED: Mapping[str, tuple[Any, ...]] = {
    "leaky_relu": (lambda m, x, a: select(x > 0, x, x * constant(a, x)), 0.01),
    "elu": (_elu, 1.0, 1.0, 1.0),
    "celu": (lambda m, x, a: select(x > 0, x, constant(a, x) * m.expm1(x / constant(a, x))), 1.0),
    "softplus": (_softplus, 1.0, 20.0),
    "hardtanh": (lambda m, x, low, high: minimum(maximum(x, constant(low, x)), constant(high, x)), -1.0, 1.0),
    "threshold": (lambda m, x, limit, value: select(x <= constant(limit, x), constant(value, x), x), 0.0, 0.0),
    "softshrink": (_softshrink, 0.5),
    "hardshrink": (lambda m, x, a: select(absolute(m, x) <= constant(a, x), constant(0, x), x), 0.5),
}

ACTIVATIONS: Mapping[str, Emitter] = {
    **{f"aten.{n}.default": apply(f) for n, f in _FORMULAS.items()},
    **{f"aten.{n}.default": with_numbers(f[0], *f[1:]) for n, f in _NUMBERED.items()},
    "aten.gelu.default": gelu,
    **{f"aten.{n}.default": prelu for n in ("prelu", "_prelu_kernel")},
    "aten.glu.default": glu,
    "aten.logit.default": logit,
}
