"""One element in, one element out: arithmetic, comparisons, logic, conversions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from backends.arguments import Refused, number, promoted, result_type
from backends.tvm.scalars import constant, is_infinite, is_nan, is_truth, maximum, minimum, remainder_of, unequal
from backends.tvm.scope import Emitter, Scope, Tensor
from ir import Arg, Node, TensorType, Value

Formula = Callable[..., Any]


def short(node: Node) -> str:
    """The operator's name without its family."""
    return node.op.name.split(".")[1].strip("_") or "op"


def select(condition: Any, a: Any, b: Any) -> Any:
    """``condition ? a : b``; both are computed."""
    from tvm import tirx

    return tirx.Select(condition, a, b)


def apply(f: Formula, count: int = 1) -> Emitter:
    """A formula of the first operands, in the result's type; it is given the target's functions first."""

    def emit(s: Scope, node: Node, *args: Arg) -> Tensor:
        return s.pointwise(short(node), result_type(node), lambda *v: f(s.math, *v), args[:count])

    return emit


def named(name: str) -> Emitter:
    """A function that TIR has by name."""
    return apply(lambda m, x: m.call(name, x))


def rounding(name: str) -> Emitter:
    """Rounding of floats; integers are round already."""

    def emit(s: Scope, node: Node, x: Value, *_: Arg) -> Tensor:
        if not result_type(node).is_floating_point:
            return s[x]
        return s.pointwise(name, result_type(node), lambda v: s.math.call(name, v), [x])

    return emit


# --- arithmetic --------------------------------------------------------------------------------


def add_sub(sign: int, swapped: bool = False) -> Emitter:
    """``a + alpha * b``, ``a - alpha * b``, and ``b - alpha * a`` when swapped."""

    def emit(s: Scope, node: Node, a: Arg, b: Arg, alpha: Arg = 1) -> Tensor:
        from tvm import tirx

        dtype = result_type(node)
        if swapped:
            a, b = b, a
        if dtype == torch.bool:
            return s.pointwise("or", dtype, tirx.any, [a, b])
        if alpha == 1:
            return s.pointwise("add" if sign > 0 else "sub", dtype, lambda x, y: x + y if sign > 0 else x - y, [a, b])
        by = number(alpha) if dtype.is_floating_point else alpha
        return s.pointwise("add", dtype, lambda x, y, z: x + y * z if sign > 0 else x - y * z, [a, b, by])

    return emit


def multiply(s: Scope, node: Node, a: Arg, b: Arg) -> Tensor:
    """``aten.mul``."""
    from tvm import tirx

    dtype = result_type(node)
    return s.pointwise("mul", dtype, tirx.all if dtype == torch.bool else lambda x, y: x * y, [a, b])


def divide(s: Scope, node: Node, a: Arg, b: Arg) -> Tensor:
    """True division; integers become floats first."""
    return s.pointwise("div", result_type(node), lambda x, y: x / y, [a, b])


def divide_mode(s: Scope, node: Node, a: Arg, b: Arg, rounding_mode: Arg = None) -> Tensor:
    """``aten.div.*_mode``: true, toward zero, or down."""
    from tvm import tirx

    if rounding_mode is None:
        return divide(s, node, a, b)
    if rounding_mode == "floor":
        return floor_divide(s, node, a, b)
    dtype = result_type(node)
    if dtype.is_floating_point:
        return s.pointwise("div", dtype, lambda x, y: tirx.trunc(x / y), [a, b])
    return s.pointwise("div", dtype, tirx.truncdiv, [a, b])


def _floor_quotient(x: Any, y: Any) -> Any:
    """As torch: from the remainder, so that no rounding error is floored."""
    from tvm import tirx

    rest = remainder_of(x, y)
    quotient = (x - rest) / y
    down = tirx.all(rest != 0, _signs_differ(rest, y))
    quotient = select(down, quotient - constant(1, x), quotient)
    floored = tirx.floor(quotient)
    floored = select(quotient - floored > constant(0.5, x), floored + constant(1, x), floored)
    return select(y == 0, x / y, floored)


def _signs_differ(a: Any, b: Any) -> Any:
    from tvm import tirx

    return tirx.any(tirx.all(a < 0, b >= 0), tirx.all(a >= 0, b < 0))


def floor_divide(s: Scope, node: Node, a: Arg, b: Arg) -> Tensor:
    """Division rounded down."""
    from tvm import tirx

    dtype = result_type(node)
    return s.pointwise("floordiv", dtype, _floor_quotient if dtype.is_floating_point else tirx.floordiv, [a, b])


def remainder(s: Scope, node: Node, a: Arg, b: Arg) -> Tensor:
    """Python's modulo: the sign of the divisor."""
    from tvm import tirx

    def of_floats(x: Any, y: Any) -> Any:
        rest = remainder_of(x, y)
        return select(tirx.all(rest != 0, _signs_differ(rest, y)), rest + y, rest)

    dtype = result_type(node)
    return s.pointwise("mod", dtype, of_floats if dtype.is_floating_point else tirx.floormod, [a, b])


def fmod(s: Scope, node: Node, a: Arg, b: Arg) -> Tensor:
    """C's modulo: the sign of the dividend."""
    from tvm import tirx

    dtype = result_type(node)
    return s.pointwise("fmod", dtype, remainder_of if dtype.is_floating_point else tirx.truncmod, [a, b])


def power(s: Scope, node: Node, a: Arg, b: Arg) -> Tensor:
    """``aten.pow``; the exponents that models use become cheaper operations."""
    from tvm import tirx

    dtype = result_type(node)
    cheap: Mapping[Any, Formula] = {
        2: lambda x: x * x, 1: lambda x: x, 3: lambda x: x * x * x, 0.5: tirx.sqrt,
        -0.5: lambda x: constant(1, x) / tirx.sqrt(x), -1: lambda x: constant(1, x) / x,
    }  # fmt: skip
    if isinstance(b, (int, float)) and b in cheap and (dtype.is_floating_point or b in (1, 2, 3)):
        return s.pointwise("pow", dtype, cheap[b], [a])
    if not dtype.is_floating_point:
        if not isinstance(b, int) or not 0 <= b <= 8:
            raise Refused("a power of integers with an exponent that is not small and known")
        return s.pointwise("pow", dtype, lambda x: math.prod([x] * b, start=constant(1, x)), [a])
    return s.pointwise("pow", dtype, tirx.power, [a, b])


def clamp(s: Scope, node: Node, x: Value, low: Arg = None, high: Arg = None) -> Tensor:
    """``aten.clamp`` and its one-sided forms; bounds may be tensors."""
    dtype = result_type(node)
    args = [a for a in (x, low, high) if a is not None]

    def f(v: Any, *bounds: Any) -> Any:
        rest = list(bounds)
        if low is not None:
            v = maximum(v, rest.pop(0))
        return minimum(v, rest.pop(0)) if high is not None else v

    return s.pointwise("clamp", dtype, f, args)


def clamp_max(s: Scope, node: Node, x: Value, high: Arg) -> Tensor:
    """``aten.clamp_max``."""
    return clamp(s, node, x, None, high)


def shift(direction: str) -> Emitter:
    """``a << b``, ``a >> b``."""

    def emit(s: Scope, node: Node, a: Arg, b: Arg) -> Tensor:
        return s.pointwise("shift", result_type(node), lambda x, y: x << y if direction == "left" else x >> y, [a, b])

    return emit


def absolute(m: Any, x: Any) -> Any:
    """``|x|``."""
    from tvm import tirx

    return tirx.abs(x)


def negated(m: Any, x: Any) -> Any:
    """``-x``; TIR writes it as a product with -1, which unsigned numbers do not have."""
    return constant(0, x) - x if "uint" in str(x.ty.dtype) else -x


def sign(m: Any, x: Any) -> Any:
    """-1, 0 or 1; of NaN it is 0, as in torch."""
    if is_truth(x):
        return x
    one, zero = constant(1, x), constant(0, x)
    return select(x > 0, one, select(x < 0, constant(-1, x), zero)) if "u" not in str(x.ty.dtype) else select(
        x > 0, one, zero
    )  # fmt: skip


# --- comparisons, logic, choices ---------------------------------------------------------------


def compare(f: Formula) -> Emitter:
    """Both operands in their common type; the result is bool."""

    def emit(s: Scope, node: Node, a: Arg, b: Arg) -> Tensor:
        dtype = promoted(a, b)
        within = torch.int32 if dtype == torch.bool else dtype
        return s.pointwise(short(node), torch.bool, f, [a, b], within)

    return emit


def where(s: Scope, node: Node, condition: Value, a: Arg, b: Arg) -> Tensor:
    """``aten.where``."""
    dtype = result_type(node)
    return s.pointwise("where", dtype, select, [condition, a, b], [torch.bool, dtype, dtype])


def masked_fill(s: Scope, node: Node, x: Value, mask: Value, value: Arg) -> Tensor:
    """``aten.masked_fill``."""
    dtype = result_type(node)
    return s.pointwise("where", dtype, select, [mask, value, x], [torch.bool, dtype, dtype])


def logical(name: str) -> Emitter:
    """Logic on truth values of any type."""

    def emit(s: Scope, node: Node, *args: Arg) -> Tensor:
        return s.pointwise(f"logical_{name}", torch.bool, _logic(name), args, torch.bool)

    return emit


def bitwise(name: str) -> Emitter:
    """Logic on bits; on booleans it is plain logic."""

    def emit(s: Scope, node: Node, *args: Arg) -> Tensor:
        dtype = result_type(node)
        if dtype == torch.bool:
            return s.pointwise(name, dtype, _logic(name), args)
        bits: Mapping[str, Formula] = {
            "and": lambda x, y: x & y, "or": lambda x, y: x | y, "xor": lambda x, y: x ^ y, "not": lambda x: ~x,
        }  # fmt: skip
        return s.pointwise(name, dtype, bits[name], args)

    return emit


def _logic(name: str) -> Formula:
    from tvm import tirx

    forms: Mapping[str, Formula] = {
        "and": tirx.all, "or": tirx.any, "not": tirx.Not,
        "xor": lambda x, y: tirx.any(tirx.all(x, tirx.Not(y)), tirx.all(tirx.Not(x), y)),
    }  # fmt: skip
    return forms[name]


def test(f: Formula, of_integers: bool) -> Emitter:
    """A question about floats; integers have one answer."""

    def emit(s: Scope, node: Node, x: Value) -> Tensor:
        from tvm import tirx

        dtype = x.tensor.dtype
        if not dtype.is_floating_point:
            return s.pointwise(short(node), torch.bool, lambda _: tirx.const(of_integers, "bool"), [x], dtype)
        return s.pointwise(short(node), torch.bool, f, [x], dtype)

    return emit


def convert(s: Scope, node: Node, x: Value, *_: Arg) -> Tensor:
    """Every spelling of a conversion: the result's type says it all."""
    if isinstance(x.type, TensorType) and x.tensor.dtype == result_type(node):
        return s[x]
    return s.pointwise("cast", result_type(node), lambda v: v, [x], s[x].dtype)


def same(s: Scope, node: Node, x: Value, *_: Arg) -> Tensor:
    """The operand itself: tensors are never written to."""
    return s[x]


def dropout(s: Scope, node: Node, x: Value, p: Arg = 0.5, train: Arg = False) -> Tensor:
    """Nothing, in eval mode."""
    if train:
        raise Refused("dropout in training mode; put the model into eval mode")
    return s[x]


_FLOAT = (
    "sin", "cos", "tan", "atan", "asin", "acos", "sinh", "cosh", "asinh", "acosh", "atanh", "exp2", "log2", "log10",
    "sqrt",
)  # fmt: skip
_OWN = ("exp", "log", "tanh", "erf", "sigmoid", "log1p", "expm1")
_COMPARISONS: Mapping[str, Formula] = {
    "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b, "ne": unequal,
}  # fmt: skip
_COPIES = (
    "to.dtype", "to.device", "to.dtype_layout", "to.other", "to.prim_Device", "_to_copy.default", "type_as.default",
    "_autocast_to_reduced_precision.default", "_autocast_to_full_precision.default",
)  # fmt: skip
_SAME = (
    "clone.default", "detach.default", "alias.default", "contiguous.default", "lift_fresh_copy.default",
    "detach_copy.default", "lift_fresh.default", "resolve_conj.default", "resolve_neg.default", "alias_copy.default",
    "positive.default", "real.default",
)  # fmt: skip

_FORMULAS: Mapping[str, Formula] = {
    "abs": absolute, "sign": sign, "sgn": sign, "neg": negated, "square": lambda m, x: x * x,
    "rsqrt": lambda m, x: constant(1, x) / m.call("sqrt", x), "reciprocal": lambda m, x: constant(1, x) / x,
    "special_erfc": lambda m, x: constant(1, x) - m.erf(x), "erfc": lambda m, x: constant(1, x) - m.erf(x),
}  # fmt: skip


def _binary(f: Formula) -> Emitter:
    return apply(lambda m, a, b: f(a, b), 2)


def _arctan2(m: Any, y: Any, x: Any) -> Any:
    from tvm import tirx

    return tirx.atan2(y, x)


def _is_finite(x: Any) -> Any:
    from tvm import tirx

    return tirx.abs(x) < constant(math.inf, x)  # NaN is not


POINTWISE: Mapping[str, Emitter] = {
    **{f"aten.{n}.default": named(n) for n in _FLOAT},
    **{f"aten.{n}.default": apply(lambda m, x, n=n: getattr(m, n)(x)) for n in _OWN},
    **{f"aten.{n}.default": apply(f) for n, f in _FORMULAS.items()},
    **{f"aten.{n}.default": rounding(t) for n, t in
       {"floor": "floor", "ceil": "ceil", "round": "nearbyint", "trunc": "trunc", "fix": "trunc"}.items()},
    **{f"aten.{n}.{o}": compare(f) for n, f in _COMPARISONS.items() for o in ("Tensor", "Scalar")},
    **{f"aten.add.{o}": add_sub(1) for o in ("Tensor", "Scalar")},
    **{f"aten.sub.{o}": add_sub(-1) for o in ("Tensor", "Scalar")},
    **{f"aten.rsub.{o}": add_sub(-1, swapped=True) for o in ("Tensor", "Scalar")},
    **{f"aten.mul.{o}": multiply for o in ("Tensor", "Scalar")},
    **{f"aten.{n}.{o}": divide for n in ("div", "true_divide") for o in ("Tensor", "Scalar")},
    **{f"aten.div.{o}_mode": divide_mode for o in ("Tensor", "Scalar")},
    **{f"aten.floor_divide.{o}": floor_divide for o in ("default", "Scalar")},
    **{f"aten.remainder.{o}": remainder for o in ("Tensor", "Scalar", "Scalar_Tensor")},
    **{f"aten.fmod.{o}": fmod for o in ("Tensor", "Scalar")},
    **{f"aten.pow.{o}": power for o in ("Tensor_Tensor", "Tensor_Scalar", "Scalar")},
    **{f"aten.{n}.{o}": clamp for n in ("clamp", "clip", "clamp_min") for o in ("default", "Tensor")},
    **{f"aten.clamp_max.{o}": clamp_max for o in ("default", "Tensor")},
    **{f"aten.{n}": _binary(maximum) for n in ("maximum.default", "max.other")},
    **{f"aten.{n}": _binary(minimum) for n in ("minimum.default", "min.other")},
    "aten.bitwise_left_shift.Tensor_Scalar": shift("left"),
    "aten.bitwise_right_shift.Tensor_Scalar": shift("right"),
    "aten.__lshift__.Scalar": shift("left"),
    "aten.__rshift__.Scalar": shift("right"),
    **{f"aten.where.{o}": where for o in ("self", "ScalarOther", "ScalarSelf", "Scalar")},
    **{f"aten.masked_fill.{o}": masked_fill for o in ("Scalar", "Tensor")},
    **{f"aten.logical_{n}.default": logical(n) for n in ("and", "or", "xor", "not")},
    **{f"aten.bitwise_{n}.{o}": bitwise(n) for n in ("and", "or", "xor") for o in ("Tensor", "Scalar")},
    **{f"aten.__{n}__.{o}": bitwise(n) for n in ("and", "or", "xor") for o in ("Tensor", "Scalar")},
    "aten.bitwise_not.default": bitwise("not"),
    "aten.isnan.default": test(is_nan, False),
    "aten.isinf.default": test(is_infinite, False),
    "aten.isfinite.default": test(_is_finite, True),
    "aten.atan2.default": apply(_arctan2, 2),
    **{f"aten.{n}": convert for n in _COPIES},
    **{f"aten.{n}": same for n in _SAME},
    **{f"aten.{n}.default": dropout for n in ("dropout", "feature_dropout", "alpha_dropout")},
}  # fmt: skip
