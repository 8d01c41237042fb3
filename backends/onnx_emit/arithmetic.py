"""Arithmetic on elements, exactly as torch rounds and promotes it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from backends.arguments import Refused, result_type
from backends.onnx_emit.pointwise import Emitter, pair, widened, wider
from backends.onnx_emit.scope import Scope
from ir import Arg, Node, Value


def add_sub(kind: str, swapped: bool = False) -> Emitter:
    """``a + alpha * b``, ``a - alpha * b``, and ``b - alpha * a`` when swapped."""

    def emit(s: Scope, node: Node, a: Arg, b: Arg, alpha: Arg = 1) -> str:
        dtype = result_type(node)
        if swapped:
            a, b = b, a
        if dtype == torch.bool:
            return s.op("Or", s.tensor(a, dtype), s.tensor(b, dtype)) if alpha else s.tensor(a, dtype)
        if b == 0 and not isinstance(b, Value):
            return s.tensor(a, dtype)
        wide, (x, y) = pair(s, dtype, a, b)
        if alpha != 1:
            y = s.op("Mul", y, s.tensor(alpha, wide))
        return s.cast(s.op(kind, x, y), wide, dtype)

    return emit


def multiply(s: Scope, node: Node, a: Arg, b: Arg) -> str:
    """``aten.mul``."""
    dtype = result_type(node)
    if dtype == torch.bool:
        return s.op("And", s.tensor(a, dtype), s.tensor(b, dtype))
    return widened(s, "Mul", a, b, dtype)


def divide(s: Scope, node: Node, a: Arg, b: Arg) -> str:
    """True division; integers become floats first."""
    dtype = result_type(node)
    return s.op("Div", s.tensor(a, dtype), s.tensor(b, dtype))


def divide_mode(s: Scope, node: Node, a: Arg, b: Arg, rounding_mode: Arg = None) -> str:
    """``aten.div.*_mode``: true, toward zero, or down."""
    if rounding_mode is None:
        return divide(s, node, a, b)
    if rounding_mode == "floor":
        return floor_divide(s, node, a, b)
    dtype = result_type(node)
    quotient = widened(s, "Div", a, b, dtype)
    return quotient if not dtype.is_floating_point else _trunc(s, quotient, dtype)


def _trunc(s: Scope, x: str, dtype: torch.dtype) -> str:
    return s.op("Mul", s.op("Sign", x), s.op("Floor", s.op("Abs", x)))


def _signs_differ(s: Scope, a: str, b: str, dtype: torch.dtype) -> str:
    zero = s.const(0, dtype)
    return s.op("Xor", s.op("Less", a, zero), s.op("Less", b, zero))


def _precise_pair(s: Scope, dtype: torch.dtype, a: Arg, b: Arg) -> tuple[torch.dtype, list[str]]:
    """Operands in a type in which a quotient is not rounded to a whole number by accident."""
    if dtype not in (torch.float16, torch.bfloat16):
        return pair(s, dtype, a, b)
    return torch.float32, [s.cast(s.tensor(v, dtype), dtype, torch.float32) for v in (a, b)]


def floor_divide(s: Scope, node: Node, a: Arg, b: Arg) -> str:
    """Division rounded down, as torch does it: from the remainder, so that no rounding error is floored."""
    narrow = result_type(node)
    dtype, (x, y) = _precise_pair(s, narrow, a, b)
    zero, one = s.const(0, dtype), s.const(1, dtype)
    if not dtype.is_floating_point:
        quotient = s.op("Div", x, y)
        rest = s.op("Sub", x, s.op("Mul", quotient, y))
        down = s.op("And", s.op("Not", s.op("Equal", rest, zero)), _signs_differ(s, rest, y, dtype))
        return s.cast(s.op("Where", down, s.op("Sub", quotient, one), quotient), dtype, narrow)
    rest = s.op("Mod", x, y, fmod=1)
    quotient = s.op("Div", s.op("Sub", x, rest), y)
    down = s.op("And", s.op("Not", s.op("Equal", rest, zero)), _signs_differ(s, rest, y, dtype))
    quotient = s.op("Where", down, s.op("Sub", quotient, one), quotient)
    floored = s.op("Floor", quotient)
    far = s.op("Greater", s.op("Sub", quotient, floored), s.const(0.5, dtype))
    floored = s.op("Where", far, s.op("Add", floored, one), floored)
    return s.cast(s.op("Where", s.op("Equal", y, zero), s.op("Div", x, y), floored), dtype, narrow)


def remainder(s: Scope, node: Node, a: Arg, b: Arg) -> str:
    """Python's modulo: the sign of the divisor."""
    narrow = result_type(node)
    dtype, (x, y) = _precise_pair(s, narrow, a, b)
    if not dtype.is_floating_point:
        return s.cast(s.op("Mod", x, y), dtype, narrow)
    rest = s.op("Mod", x, y, fmod=1)
    other = s.op("And", s.op("Not", s.op("Equal", rest, s.const(0, dtype))), _signs_differ(s, rest, y, dtype))
    return s.cast(s.op("Where", other, s.op("Add", rest, y), rest), dtype, narrow)


def fmod(s: Scope, node: Node, a: Arg, b: Arg) -> str:
    """C's modulo: the sign of the dividend."""
    narrow = result_type(node)
    dtype, (x, y) = _precise_pair(s, narrow, a, b)
    return s.cast(s.op("Mod", x, y, fmod=1), dtype, narrow)


def power(s: Scope, node: Node, a: Arg, b: Arg) -> str:
    """``aten.pow``; the exponents that models use become cheaper operators."""
    narrow = result_type(node)
    dtype, (x, y) = pair(s, narrow, a, b)
    if dtype != narrow:
        return s.cast(s.op("Pow", x, y), dtype, narrow)
    if b == 2:
        return s.op("Mul", x, x)
    if b == 1:
        return x
    if b == 0.5:
        return s.op("Sqrt", x)
    if b == -0.5:
        return s.op("Reciprocal", s.op("Sqrt", x))
    return s.op("Pow", x, y)


def rsqrt(s: Scope, node: Node, x: Value) -> str:
    """``1 / sqrt(x)``."""
    return s.op("Reciprocal", s.op("Sqrt", s.tensor(x, result_type(node))))


def logarithm(base: float | None = None, plus_one: bool = False) -> Emitter:
    """``log``, ``log2``, ``log10``, ``log1p``."""

    def emit(s: Scope, node: Node, x: Value) -> str:
        dtype = result_type(node)
        name = s.tensor(x, dtype)
        if plus_one:  # exact near zero: x * log(u) / (u - 1) with u = 1 + x, where u is not 1
            one = s.const(1, dtype)
            u = s.op("Add", name, one)
            gap = s.op("Sub", u, one)
            same = s.op("Equal", gap, s.const(0, dtype))
            big = s.op("IsInf", u) if dtype in (torch.float32, torch.float64) else None
            ratio = s.op("Div", s.op("Mul", s.op("Log", u), name), s.op("Where", same, one, gap))
            if big is not None:
                ratio = s.op("Where", big, u, ratio)
            return s.op("Where", same, name, ratio)
        answer = s.op("Log", name)
        return answer if base is None else s.op("Mul", answer, s.const(1 / math.log(base), dtype))

    return emit


def exponential(base_two: bool = False, minus_one: bool = False) -> Emitter:
    """``exp``, ``exp2``, ``expm1``."""

    def emit(s: Scope, node: Node, x: Value) -> str:
        dtype = result_type(node)
        name = s.tensor(x, dtype)
        if base_two:
            return s.op("Pow", s.const(2, dtype), name)
        if minus_one:  # exp(x) - 1 = 2 tanh(x/2) / (1 - tanh(x/2)), exact near zero
            half = s.op("Tanh", s.op("Mul", name, s.const(0.5, dtype)))
            near = s.op("Div", s.op("Mul", half, s.const(2, dtype)), s.op("Sub", s.const(1, dtype), half))
            far = s.op("Sub", s.op("Exp", name), s.const(1, dtype))
            return s.op("Where", s.op("Less", s.op("Abs", name), s.const(0.5, dtype)), near, far)
        return s.op("Exp", name)

    return emit


def clamp(s: Scope, node: Node, x: Value, low: Arg = None, high: Arg = None) -> str:
    """``aten.clamp`` and its one-sided forms; bounds may be tensors."""
    dtype = result_type(node)
    wide = wider(dtype)
    name = s.cast(s.tensor(x, dtype), dtype, wide)
    if low is not None:
        name = s.op("Max", name, s.cast(s.tensor(low, dtype), dtype, wide))
    if high is not None:
        name = s.op("Min", name, s.cast(s.tensor(high, dtype), dtype, wide))
    return s.cast(name, wide, dtype)


def clamp_max(s: Scope, node: Node, x: Value, high: Arg) -> str:
    """``aten.clamp_max``."""
    return clamp(s, node, x, None, high)


def shift(direction: str) -> Emitter:
    """``a << b`` as a product, ``a >> b`` as a division rounded down: ONNX shifts unsigned numbers only."""

    def emit(s: Scope, node: Node, a: Arg, b: Arg) -> str:
        if isinstance(b, bool) or not isinstance(b, int):
            raise Refused("shifts by a tensor; shift by a number")
        if direction == "LEFT":
            return multiply(s, node, a, 1 << b)
        return floor_divide(s, node, a, 1 << b)

    return emit


def trunc(s: Scope, node: Node, x: Value) -> str:
    """``aten.trunc``."""
    dtype = result_type(node)
    return _trunc(s, s[x], dtype) if dtype.is_floating_point else s[x]


def reciprocal(s: Scope, node: Node, x: Value) -> str:
    """``1 / x``."""
    return s.op("Reciprocal", s.tensor(x, result_type(node)))


def square(s: Scope, node: Node, x: Value) -> str:
    """``x * x``."""
    return multiply(s, node, x, x)


def arctan2(s: Scope, node: Node, a: Value, b: Value) -> str:
    """The angle of a point, by quadrants of ``atan``."""
    dtype = result_type(node)
    y, x = s.tensor(a, dtype), s.tensor(b, dtype)
    zero, pi, half = (s.const(v, dtype) for v in (0, math.pi, math.pi / 2))
    far = s.op("And", *(s.op("Equal", s.op("Abs", v), s.const(math.inf, dtype)) for v in (y, x)))
    y, x = (s.op("Where", far, s.op("Sign", v), v) for v in (y, x))
    base = s.op("Atan", s.op("Div", y, x))
    turn = s.op("Where", s.op("Less", y, zero), s.op("Neg", pi), pi)
    base = s.op("Where", s.op("Less", x, zero), s.op("Add", base, turn), base)
    upright = s.op("Mul", s.op("Sign", y), half)
    return s.op("Where", s.op("Equal", x, zero), upright, base)


ARITHMETIC: Mapping[str, Emitter] = {
    **{f"aten.add.{o}": add_sub("Add") for o in ("Tensor", "Scalar")},
    **{f"aten.sub.{o}": add_sub("Sub") for o in ("Tensor", "Scalar")},
    **{f"aten.rsub.{o}": add_sub("Sub", swapped=True) for o in ("Tensor", "Scalar")},
    **{f"aten.mul.{o}": multiply for o in ("Tensor", "Scalar")},
    **{f"aten.{n}.{o}": divide for n in ("div", "true_divide") for o in ("Tensor", "Scalar")},
    **{f"aten.div.{o}_mode": divide_mode for o in ("Tensor", "Scalar")},
    **{f"aten.floor_divide.{o}": floor_divide for o in ("default", "Scalar")},
    **{f"aten.remainder.{o}": remainder for o in ("Tensor", "Scalar", "Scalar_Tensor")},
    **{f"aten.fmod.{o}": fmod for o in ("Tensor", "Scalar")},
    **{f"aten.pow.{o}": power for o in ("Tensor_Tensor", "Tensor_Scalar", "Scalar")},
    **{f"aten.clamp.{o}": clamp for o in ("default", "Tensor")},
    **{f"aten.clip.{o}": clamp for o in ("default", "Tensor")},
    **{f"aten.clamp_min.{o}": clamp for o in ("default", "Tensor")},
    **{f"aten.clamp_max.{o}": clamp_max for o in ("default", "Tensor")},
    "aten.bitwise_left_shift.Tensor_Scalar": shift("LEFT"),
    "aten.bitwise_right_shift.Tensor_Scalar": shift("RIGHT"),
    "aten.__lshift__.Scalar": shift("LEFT"),
    "aten.__rshift__.Scalar": shift("RIGHT"),
    "aten.rsqrt.default": rsqrt,
    "aten.log.default": logarithm(),
    "aten.log2.default": logarithm(2),
    "aten.log10.default": logarithm(10),
    "aten.log1p.default": logarithm(plus_one=True),
    "aten.exp.default": exponential(),
    "aten.exp2.default": exponential(base_two=True),
    "aten.expm1.default": exponential(minus_one=True),
    "aten.trunc.default": trunc,
    "aten.fix.default": trunc,
    "aten.reciprocal.default": reciprocal,
    "aten.square.default": square,
    "aten.atan2.default": arctan2,
}
