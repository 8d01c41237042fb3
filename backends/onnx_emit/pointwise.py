"""Comparisons, logic, choices and conversions: one element in, one element out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from backends.arguments import Refused, dtype_of, promoted, result_type
from backends.onnx_emit.scope import Scope
from ir import Arg, Node, Value

Emitter = Callable[..., Any]


_NARROW = frozenset({torch.bool, torch.int8, torch.int16, torch.uint8, torch.uint16})


def wider(dtype: torch.dtype) -> torch.dtype:
    """What to compute in: engines have few kernels for narrow integers, and int32 wraps alike when narrowed."""
    return torch.int32 if dtype in _NARROW else dtype


def unary(kind: str, **attributes: Any) -> Emitter:
    """An ONNX operator of one operand; integers are computed as the float torch makes of them."""

    def emit(s: Scope, node: Node, x: Value, *_: Arg) -> str:
        dtype = result_type(node)
        wide = wider(dtype)
        return s.cast(s.op(kind, s.cast(s.tensor(x, dtype), dtype, wide), **attributes), wide, dtype)

    return emit


def rounding(kind: str) -> Emitter:
    """Rounding of floats; integers are round already."""

    def emit(s: Scope, node: Node, x: Value, *_: Arg) -> str:
        return s.op(kind, s[x]) if result_type(node).is_floating_point else s[x]

    return emit


def binary(kind: str) -> Emitter:
    """Both operands in the result's type."""

    def emit(s: Scope, node: Node, a: Arg, b: Arg, *_: Arg) -> str:
        return widened(s, kind, a, b, result_type(node))

    return emit


def widened(s: Scope, kind: str, a: Arg, b: Arg, dtype: torch.dtype) -> str:
    """Compute in a type that engines have kernels for, and come back."""
    wide, (x, y) = pair(s, dtype, a, b)
    return s.cast(s.op(kind, x, y), wide, dtype)


def pair(s: Scope, dtype: torch.dtype, a: Arg, b: Arg) -> tuple[torch.dtype, list[str]]:
    """Two operands of a type, in the type to compute in."""
    wide = wider(dtype)
    return wide, [s.cast(s.tensor(v, dtype), dtype, wide) for v in (a, b)]


def compare(kind: str, negate: bool = False) -> Emitter:
    """Both operands in their common type; the result is bool."""

    def emit(s: Scope, node: Node, a: Arg, b: Arg) -> str:
        dtype = promoted(a, b)
        if dtype == torch.bool:  # ONNX orders no booleans
            dtype = torch.bool if kind == "Equal" else torch.int32
        wide = wider(dtype)
        x, y = (s.cast(s.tensor(v, dtype), dtype, wide) for v in (a, b))
        answer = s.op(kind, x, y)
        return s.op("Not", answer) if negate else answer

    return emit


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


def cast(s: Scope, node: Node, x: Value, *_: Arg) -> str:
    """``to``, ``_to_copy``, ``type_as`` and all that only converts or copies."""
    return s.cast(s[x], dtype_of(x), result_type(node))


def dropout(s: Scope, node: Node, x: Value, p: Arg, train: Arg) -> str:
    """Nothing, in eval mode."""
    if train and p != 0:
        raise Refused("dropout in training mode; put the model into eval mode")
    return s[x]


_FLOAT_UNARY = {
    "sqrt": "Sqrt", "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos", "atan": "Atan",
    "sinh": "Sinh", "cosh": "Cosh", "tanh": "Tanh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh",
    "erf": "Erf", "sigmoid": "Sigmoid", "abs": "Abs", "neg": "Neg",
}  # fmt: skip
_COPIES = (
    "to.dtype", "to.dtype_layout", "to.device", "to.other", "_to_copy.default", "type_as.default", "clone.default",
    "alias.default", "detach.default", "contiguous.default", "lift_fresh_copy.default", "lift_fresh.default",
    "lift.default", "resolve_conj.default",
    "resolve_neg.default", "positive.default",
)  # fmt: skip
_COMPARISONS = {"lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual", "eq": "Equal"}

CONVERSIONS = frozenset(f"aten.{name}" for name in _COPIES)
"""What only changes the element type, or nothing."""

POINTWISE: Mapping[str, Emitter] = {
    **{f"aten.{name}.default": dropout for name in ("dropout", "feature_dropout", "alpha_dropout")},
    **{f"aten.{name}.default": unary(kind) for name, kind in _FLOAT_UNARY.items()},
    **{f"aten.{name}.default": rounding(name.capitalize()) for name in ("floor", "ceil", "round")},
    **{f"aten.{n}.{o}": compare(k) for n, k in _COMPARISONS.items() for o in ("Tensor", "Scalar")},
    **{f"aten.ne.{o}": compare("Equal", negate=True) for o in ("Tensor", "Scalar")},
    **{f"aten.{n}.{o}": binary(k) for n, k in {"maximum": "Max", "minimum": "Min"}.items() for o in ("default",)},
    **{f"aten.{n}.other": binary(k) for n, k in {"max": "Max", "min": "Min"}.items()},
    **{f"aten.where.{o}": where for o in ("self", "ScalarOther", "ScalarSelf", "Scalar")},
    **{f"aten.masked_fill.{o}": masked_fill for o in ("Scalar", "Tensor")},
    **{f"aten.logical_{n}.default": logical(n.capitalize()) for n in ("and", "or", "xor", "not")},
    **{f"aten.bitwise_{n}.{o}": bitwise(n.capitalize()) for n in ("and", "or", "xor") for o in ("Tensor", "Scalar")},
    **{f"aten.__{n}__.{o}": bitwise(n.capitalize()) for n in ("and", "or", "xor") for o in ("Tensor", "Scalar")},
    "aten.bitwise_not.default": bitwise("Not"),
    "aten.isnan.default": is_nan,
    "aten.isinf.default": is_inf,
    "aten.isfinite.default": is_finite,
    "aten.sign.default": sign,
    "aten.sgn.default": sign,
    **dict.fromkeys(CONVERSIONS, cast),
}
