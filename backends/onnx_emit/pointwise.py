"""Arithmetic, comparisons, logic and activations: one element in, one element out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from backends.onnx_emit.dtypes import Refused, dtype_of, promoted
from backends.onnx_emit.scope import Scope
from ir import Arg, Node, Value

Emitter = Callable[..., Any]


_NARROW = frozenset({torch.int8, torch.int16, torch.uint16, torch.uint32})
"""Engines have few kernels for these; arithmetic goes through int32, which wraps around alike when narrowed."""


def result_type(node: Node) -> torch.dtype:
    """Element type of the first result."""
    return node.results[0].tensor.dtype


def unary(kind: str, **attributes: Any) -> Emitter:
    """An ONNX operator of one operand; integers are computed as the float torch makes of them."""

    def emit(s: Scope, node: Node, x: Value, *_: Arg) -> str:
        return s.op(kind, s.tensor(x, result_type(node)), **attributes)

    return emit


def rounding(kind: str) -> Emitter:
    """Rounding of floats; integers are round already."""

    def emit(s: Scope, node: Node, x: Value, *_: Arg) -> str:
        return s.op(kind, s[x]) if result_type(node).is_floating_point else s[x]

    return emit


def binary(kind: str) -> Emitter:
    """Both operands in the result's type."""

    def emit(s: Scope, node: Node, a: Arg, b: Arg, *_: Arg) -> str:
        return _widened(s, kind, a, b, result_type(node))

    return emit


def _widened(s: Scope, kind: str, a: Arg, b: Arg, dtype: torch.dtype) -> str:
    wide = torch.int32 if dtype in _NARROW or dtype == torch.uint8 else dtype
    x, y = (s.cast(s.tensor(v, dtype), dtype, wide) for v in (a, b))
    return s.cast(s.op(kind, x, y), wide, dtype)


def compare(kind: str, negate: bool = False) -> Emitter:
    """Both operands in their common type; the result is bool."""

    def emit(s: Scope, node: Node, a: Arg, b: Arg) -> str:
        dtype = promoted(a, b)
        if dtype == torch.bool:  # ONNX orders no booleans
            dtype = torch.bool if kind == "Equal" else torch.int32
        wide = torch.int32 if dtype in _NARROW or dtype == torch.uint8 else dtype
        x, y = (s.cast(s.tensor(v, dtype), dtype, wide) for v in (a, b))
        answer = s.op(kind, x, y)
        return s.op("Not", answer) if negate else answer

    return emit


def add_sub(kind: str, swapped: bool = False) -> Emitter:
    """``a + alpha * b``, ``a - alpha * b``, and ``b - alpha * a`` when swapped."""

    def emit(s: Scope, node: Node, a: Arg, b: Arg, alpha: Arg = 1) -> str:
        dtype = result_type(node)
        if swapped:
            a, b = b, a
        x, y = s.tensor(a, dtype), s.tensor(b, dtype)
        if alpha != 1:
            y = s.op("Mul", y, s.tensor(alpha, dtype))
        if dtype == torch.bool:
            return s.op("Or", x, y)
        if b == 0 and not isinstance(b, Value):
            return x
        wide = torch.int32 if dtype in _NARROW or dtype == torch.uint8 else dtype
        return s.cast(s.op(kind, s.cast(x, dtype, wide), s.cast(y, dtype, wide)), wide, dtype)

    return emit


def multiply(s: Scope, node: Node, a: Arg, b: Arg) -> str:
    """``aten.mul``."""
    dtype = result_type(node)
    return _widened(s, "And" if dtype == torch.bool else "Mul", a, b, dtype)


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
    quotient = s.op("Div", s.tensor(a, dtype), s.tensor(b, dtype))
    return quotient if not dtype.is_floating_point else _trunc(s, quotient, dtype)


def _trunc(s: Scope, x: str, dtype: torch.dtype) -> str:
    return s.op("Mul", s.op("Sign", x), s.op("Floor", s.op("Abs", x)))


def _signs_differ(s: Scope, a: str, b: str, dtype: torch.dtype) -> str:
    zero = s.const(0, dtype)
    return s.op("Xor", s.op("Less", a, zero), s.op("Less", b, zero))


def floor_divide(s: Scope, node: Node, a: Arg, b: Arg) -> str:
    """Division rounded down, as torch does it: from the remainder, so that no rounding error is floored."""
    dtype = result_type(node)
    x, y = s.tensor(a, dtype), s.tensor(b, dtype)
    zero, one = s.const(0, dtype), s.const(1, dtype)
    if not dtype.is_floating_point:
        quotient = s.op("Div", x, y)
        rest = s.op("Sub", x, s.op("Mul", quotient, y))
        down = s.op("And", s.op("Not", s.op("Equal", rest, zero)), _signs_differ(s, rest, y, dtype))
        return s.op("Where", down, s.op("Sub", quotient, one), quotient)
    rest = s.op("Mod", x, y, fmod=1)
    quotient = s.op("Div", s.op("Sub", x, rest), y)
    down = s.op("And", s.op("Not", s.op("Equal", rest, zero)), _signs_differ(s, rest, y, dtype))
    quotient = s.op("Where", down, s.op("Sub", quotient, one), quotient)
    floored = s.op("Floor", quotient)
    far = s.op("Greater", s.op("Sub", quotient, floored), s.const(0.5, dtype))
    floored = s.op("Where", far, s.op("Add", floored, one), floored)
    return s.op("Where", s.op("Equal", y, zero), s.op("Div", x, y), floored)


def remainder(s: Scope, node: Node, a: Arg, b: Arg) -> str:
    """Python's modulo: the sign of the divisor."""
    dtype = result_type(node)
    x, y = s.tensor(a, dtype), s.tensor(b, dtype)
    if not dtype.is_floating_point:
        return s.op("Mod", x, y)
    rest = s.op("Mod", x, y, fmod=1)
    other = s.op("And", s.op("Not", s.op("Equal", rest, s.const(0, dtype))), _signs_differ(s, rest, y, dtype))
    return s.op("Where", other, s.op("Add", rest, y), rest)


def fmod(s: Scope, node: Node, a: Arg, b: Arg) -> str:
    """C's modulo: the sign of the dividend."""
    dtype = result_type(node)
    return s.op("Mod", s.tensor(a, dtype), s.tensor(b, dtype), fmod=1)


def power(s: Scope, node: Node, a: Arg, b: Arg) -> str:
    """``aten.pow``; the exponents that models use become cheaper operators."""
    dtype = result_type(node)
    x = s.tensor(a, dtype)
    if b == 2:
        return s.op("Mul", x, x)
    if b == 1:
        return x
    if b == 0.5:
        return s.op("Sqrt", x)
    if b == -0.5:
        return s.op("Reciprocal", s.op("Sqrt", x))
    return s.op("Pow", x, s.tensor(b, dtype))


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
    name = s.tensor(x, dtype)
    if low is not None:
        name = s.op("Max", name, s.tensor(low, dtype))
    if high is not None:
        name = s.op("Min", name, s.tensor(high, dtype))
    return name


def clamp_max(s: Scope, node: Node, x: Value, high: Arg) -> str:
    """``aten.clamp_max``."""
    return clamp(s, node, x, None, high)


def where(s: Scope, node: Node, condition: Value, a: Arg, b: Arg) -> str:
    """``aten.where``."""
    dtype = result_type(node)
    return choose(s, s.tensor(condition, torch.bool), s.tensor(a, dtype), s.tensor(b, dtype), dtype)


def masked_fill(s: Scope, node: Node, x: Value, mask: Value, value: Arg) -> str:
    """``aten.masked_fill``."""
    dtype = result_type(node)
    return choose(s, s[mask], s.tensor(value, dtype), s[x], dtype)


def choose(s: Scope, condition: str, a: str, b: str, dtype: torch.dtype) -> str:
    """Where, also for the types that ONNX Runtime has no kernel of it for."""
    if dtype == torch.bool:
        return s.op("Or", s.op("And", condition, a), s.op("And", s.op("Not", condition), b))
    if dtype in _NARROW:
        a, b = s.cast(a, dtype, torch.int32), s.cast(b, dtype, torch.int32)
        return s.cast(s.op("Where", condition, a, b), torch.int32, dtype)
    return s.op("Where", condition, a, b)


def logical(kind: str) -> Emitter:
    """Logic on truth values of any type."""

    def emit(s: Scope, node: Node, *args: Arg) -> str:
        return s.op(kind, *(s.tensor(a, torch.bool) for a in args))

    return emit


def bitwise(kind: str) -> Emitter:
    """Logic on bits; on booleans it is plain logic."""

    def emit(s: Scope, node: Node, *args: Arg) -> str:
        dtype = result_type(node)
        prefix = "" if dtype == torch.bool else "Bitwise"
        return s.op(prefix + kind, *(s.tensor(a, dtype) for a in args))

    return emit


def shift(direction: str) -> Emitter:
    """``a << b`` as a product, ``a >> b`` as a division rounded down: ONNX shifts unsigned numbers only."""

    def emit(s: Scope, node: Node, a: Arg, b: Arg) -> str:
        if isinstance(b, Value) or isinstance(b, bool) or not isinstance(b, int):
            raise Refused("shifts by a tensor; shift by a number")
        if direction == "LEFT":
            return multiply(s, node, a, 1 << b)
        return floor_divide(s, node, a, 1 << b)

    return emit


def is_nan(s: Scope, node: Node, x: Value) -> str:
    """``aten.isnan``."""
    if not dtype_of(x).is_floating_point:
        return s.op("And", s.tensor(x, torch.bool), s.const(False, torch.bool))
    return s.op("Not", s.op("Equal", s[x], s[x]))


def is_inf(s: Scope, node: Node, x: Value) -> str:
    """``aten.isinf``."""
    dtype = dtype_of(x)
    if not dtype.is_floating_point:
        return s.op("And", s.tensor(x, torch.bool), s.const(False, torch.bool))
    return s.op("Equal", s.op("Abs", s[x]), s.const(math.inf, dtype))


def is_finite(s: Scope, node: Node, x: Value) -> str:
    """``aten.isfinite``."""
    dtype = dtype_of(x)
    if not dtype.is_floating_point:
        return s.op("Or", s.tensor(x, torch.bool), s.const(True, torch.bool))
    return s.op("Less", s.op("Abs", s[x]), s.const(math.inf, dtype))


def sign(s: Scope, node: Node, x: Value) -> str:
    """``aten.sign``."""
    dtype = result_type(node)
    if dtype == torch.bool:
        return s[x]
    if not dtype.is_floating_point:
        return s.op("Sign", s[x])
    zero = s.const(0, dtype)  # of NaN: zero, as in torch
    above, below = s.op("Greater", s[x], zero), s.op("Less", s[x], zero)
    return s.op("Sub", s.cast(above, torch.bool, dtype), s.cast(below, torch.bool, dtype))


def trunc(s: Scope, node: Node, x: Value) -> str:
    """``aten.trunc``."""
    dtype = result_type(node)
    return _trunc(s, s[x], dtype) if dtype.is_floating_point else s[x]


def reciprocal(s: Scope, node: Node, x: Value) -> str:
    """``1 / x``."""
    return s.op("Reciprocal", s.tensor(x, result_type(node)))


def square(s: Scope, node: Node, x: Value) -> str:
    """``x * x``."""
    return s.op("Mul", s[x], s[x])


def arctan2(s: Scope, node: Node, a: Value, b: Value) -> str:
    """The angle of a point, by quadrants of ``atan``."""
    dtype = result_type(node)
    y, x = s.tensor(a, dtype), s.tensor(b, dtype)
    zero, pi, half = (s.const(v, dtype) for v in (0, math.pi, math.pi / 2))
    base = s.op("Atan", s.op("Div", y, x))
    turn = s.op("Where", s.op("Less", y, zero), s.op("Neg", pi), pi)
    base = s.op("Where", s.op("Less", x, zero), s.op("Add", base, turn), base)
    upright = s.op("Mul", s.op("Sign", y), half)
    return s.op("Where", s.op("Equal", x, zero), upright, base)


def cast(s: Scope, node: Node, x: Value, *_: Arg) -> str:
    """``to``, ``_to_copy``, ``type_as`` and all that only converts or copies."""
    return s.cast(s[x], dtype_of(x), result_type(node))


_FLOAT_UNARY = {
    "sqrt": "Sqrt", "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos", "atan": "Atan",
    "sinh": "Sinh", "cosh": "Cosh", "tanh": "Tanh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh",
    "erf": "Erf", "sigmoid": "Sigmoid", "abs": "Abs", "neg": "Neg",
}  # fmt: skip
_COPIES = (
    "to.dtype", "to.dtype_layout", "to.device", "to.other", "_to_copy.default", "type_as.default", "clone.default",
    "alias.default", "detach.default", "contiguous.default", "lift_fresh_copy.default", "lift_fresh.default",
    "lift.default", "dropout.default", "feature_dropout.default", "_conj.default", "resolve_conj.default",
    "resolve_neg.default", "positive.default", "view.dtype", "copy.default", "_reshape_copy.default",
)  # fmt: skip
_COMPARISONS = {"lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual", "eq": "Equal"}

POINTWISE: Mapping[str, Emitter] = {
    **{f"aten.{name}.default": unary(kind) for name, kind in _FLOAT_UNARY.items()},
    **{f"aten.{name}.default": rounding(name.capitalize()) for name in ("floor", "ceil", "round")},
    **{f"aten.{n}.{o}": compare(k) for n, k in _COMPARISONS.items() for o in ("Tensor", "Scalar")},
    **{f"aten.ne.{o}": compare("Equal", negate=True) for o in ("Tensor", "Scalar")},
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
    **{f"aten.{n}.{o}": binary(k) for n, k in {"maximum": "Max", "minimum": "Min"}.items() for o in ("default",)},
    **{f"aten.{n}.other": binary(k) for n, k in {"max": "Max", "min": "Min"}.items()},
    **{f"aten.clamp.{o}": clamp for o in ("default", "Tensor")},
    **{f"aten.clip.{o}": clamp for o in ("default", "Tensor")},
    **{f"aten.clamp_min.{o}": clamp for o in ("default", "Tensor")},
    **{f"aten.clamp_max.{o}": clamp_max for o in ("default", "Tensor")},
    **{f"aten.where.{o}": where for o in ("self", "ScalarOther", "ScalarSelf", "Scalar")},
    **{f"aten.masked_fill.{o}": masked_fill for o in ("Scalar", "Tensor")},
    **{f"aten.logical_{n}.default": logical(n.capitalize()) for n in ("and", "or", "xor", "not")},
    **{f"aten.bitwise_{n}.{o}": bitwise(n.capitalize()) for n in ("and", "or", "xor") for o in ("Tensor", "Scalar")},
    **{f"aten.__{n}__.{o}": bitwise(n.capitalize()) for n in ("and", "or", "xor") for o in ("Tensor", "Scalar")},
    "aten.bitwise_not.default": bitwise("Not"),
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
    "aten.isnan.default": is_nan,
    "aten.isinf.default": is_inf,
    "aten.isfinite.default": is_finite,
    "aten.sign.default": sign,
    "aten.sgn.default": sign,
    "aten.trunc.default": trunc,
    "aten.fix.default": trunc,
    "aten.reciprocal.default": reciprocal,
    "aten.square.default": square,
    "aten.atan2.default": arctan2,
    **{f"aten.{name}": cast for name in _COPIES if name != "view.dtype"},
}
