"""One element in, one element out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce as fold
from typing import Any

import torch

from backends.arguments import Refused
from backends.onnx_emit.dtypes import TORCH_TYPES
from backends.tensorrt.layers import activation, alike, cast, constant, ew, rank, scalar, select, unary
from backends.tensorrt.library import data_type
from backends.tensorrt.network import Kind, NetworkScope

Attributes = Mapping[str, Any]
Names = Sequence[str]


def elementwise(operation: str) -> Kind:
    """One elementwise operation, folded over all operands."""

    def make(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
        return fold(lambda a, b: ew(s, operation, a, b), map(s.read, names))

    return make


def one(operation: str) -> Kind:
    """One unary operation."""
    return lambda s, names, attributes: unary(s, operation, s.read(names[0]))


def act(kind: str, alpha: float | None = None, beta: float | None = None) -> Kind:
    """One activation; attributes of the node go before the defaults here."""

    def make(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
        return activation(s, kind, s.read(names[0]), attributes.get("alpha", alpha), attributes.get("beta", beta))

    return make


def or_equal(operation: str) -> Kind:
    """``<=``, ``>=``: false where either is NaN."""

    def make(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
        a, b = map(s.read, names)
        return ew(s, "OR", ew(s, operation, a, b), ew(s, "EQUAL", a, b))

    return make


def extreme(operation: str) -> Kind:
    """``Max``, ``Min``: NaN where an operand is NaN, as in torch; CUDA's own give the number."""

    def make(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
        made = s.read(names[0])
        known = s.is_constant(names[0])
        for name in names[1:]:
            a, b = made, s.read(name)
            made = ew(s, operation, a, b)
            if s.type_of(made).is_floating_point:
                made = made if known else select(s, unary(s, "ISNAN", a), a, made)
                made = made if s.is_constant(name) else select(s, unary(s, "ISNAN", b), b, made)
        return made

    return make


def divide(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """Whole numbers are divided toward zero, as ONNX does."""
    return ew(s, "DIV", s.read(names[0]), s.read(names[1]))


def modulo(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """The sign of the divisor, or with ``fmod`` that of the dividend."""
    a, b = map(s.read, names)
    if s.type_of(a).is_floating_point:
        raise Refused("an exact remainder of floats; compute it in whole numbers")
    quotient = ew(s, "DIV" if attributes.get("fmod") else "FLOOR_DIV", a, b)
    return ew(s, "SUB", a, ew(s, "PROD", quotient, b))


def convert(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Cast``; a small constant is converted here."""
    want = TORCH_TYPES[attributes["to"]]
    if data_type(s.trt, want) is None:
        raise Refused(f"TensorRT has no elements of type {str(want).removeprefix('torch.')}")
    found = s.small(names[0])
    if found is not None:
        return s.const(found[0], want)
    x = s.read(names[0])
    if s.type_of(x).is_floating_point and want == torch.bool:  # a cast would drop the fraction first
        return unary(s, "NOT", scalar(s, "EQUAL", x, 0.0))
    return cast(s, x, want)


def where(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Where``."""
    return select(s, *map(s.read, names))


def gelu(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """Exact or by tanh."""
    kind = "GELU_TANH" if attributes.get("approximate") == "tanh" else "GELU_ERF"
    return activation(s, kind, s.read(names[0]))


def celu(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``max(x, 0) + min(alpha (exp(x / alpha) - 1), 0)``."""
    x, alpha = s.read(names[0]), attributes.get("alpha", 1.0)
    inner = activation(s, "ELU", scalar(s, "DIV", x, alpha), 1.0)
    return scalar(s, "PROD", inner, alpha)


def selu(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """With ONNX's constants, which are torch's."""
    return activation(s, "SELU", s.read(names[0]), 1.6732632423543772, 1.0507009873554805)


def shrink(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``x + bias`` below ``-lambd``, ``x - bias`` above ``lambd``, else 0."""
    x, limit, bias = s.read(names[0]), attributes["lambd"], attributes.get("bias", 0.0)
    zero = constant(s, torch.zeros([1] * rank(x)), s.type_of(x))
    above = select(s, scalar(s, "GREATER", x, limit), scalar(s, "SUB", x, bias), zero)
    return select(s, scalar(s, "LESS", x, -limit), scalar(s, "SUM", x, bias), above)


def identity(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """The operand itself."""
    return names[0]


def power(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Pow``; whole numbers only to small constant exponents, which are products."""
    x = s.read(names[0])
    if s.type_of(x).is_floating_point:
        return ew(s, "POW", x, cast(s, s.read(names[1]), s.type_of(x)))
    exponent = s.content(names[1])
    if exponent is None or exponent.numel() != 1 or not 1 <= int(exponent) <= 16:
        raise Refused("a power of whole numbers; cast to float32 before")
    return fold(lambda a, _: ew(s, "PROD", a, x), range(int(exponent) - 1), x)


def prelu_like(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``PRelu``: slope below zero."""
    x, slope = alike(s, s.read(names[0]), s.read(names[1]))
    return select(s, scalar(s, "LESS", x, 0.0), ew(s, "PROD", x, slope), x)


_UNARY = {
    "Abs": "ABS", "Neg": "NEG", "Sqrt": "SQRT", "Exp": "EXP", "Log": "LOG", "Sin": "SIN", "Cos": "COS", "Tan": "TAN",
    "Asin": "ASIN", "Acos": "ACOS", "Atan": "ATAN", "Sinh": "SINH", "Cosh": "COSH", "Asinh": "ASINH",
    "Acosh": "ACOSH", "Atanh": "ATANH", "Erf": "ERF", "Floor": "FLOOR", "Ceil": "CEIL", "Round": "ROUND",
    "Sign": "SIGN", "Not": "NOT", "Reciprocal": "RECIP", "IsInf": "ISINF", "IsNaN": "ISNAN",
}  # fmt: skip
_BINARY = {
    "Add": "SUM", "Sub": "SUB", "Mul": "PROD", "And": "AND", "Or": "OR", "Xor": "XOR", "Equal": "EQUAL",
    "Less": "LESS", "Greater": "GREATER",
}  # fmt: skip
ELEMENTWISE: Mapping[str, Kind] = {
    **{kind: one(operation) for kind, operation in _UNARY.items()},
    **{kind: elementwise(operation) for kind, operation in _BINARY.items()},
    "LessOrEqual": or_equal("LESS"),
    "GreaterOrEqual": or_equal("GREATER"),
    "Max": extreme("MAX"),
    "Min": extreme("MIN"),
    "Div": divide,
    "Mod": modulo,
    "Pow": power,
    "Cast": convert,
    "Where": where,
    "Identity": identity,
    "Relu": act("RELU"),
    "Sigmoid": act("SIGMOID"),
    "Tanh": act("TANH"),
    "Softplus": act("SOFTPLUS", 1.0, 1.0),
    "Elu": act("ELU", 1.0),
    "LeakyRelu": act("LEAKY_RELU", 0.01),
    "HardSigmoid": act("HARD_SIGMOID", 0.2, 0.5),
    "Selu": selu,
    "Celu": celu,
    "Gelu": gelu,
    "Shrink": shrink,
    "PRelu": prelu_like,
}
