"""Numbers made while the model runs: sizes, arithmetic on them, ``item``. Each is a vector of one element."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from backends.arguments import Refused, dtype_of
from backends.onnx_emit.pointwise import Emitter
from backends.onnx_emit.scope import Scope
from ir import Arg, Node, ScalarType, Value


def _kind(node: Node) -> torch.dtype:
    type_ = node.results[0].type
    assert isinstance(type_, ScalarType)
    return {"int": torch.int64, "float": torch.float64, "bool": torch.bool}[type_.kind]


def _number(s: Scope, arg: Arg, dtype: torch.dtype) -> str:
    if isinstance(arg, Value):
        return s.cast(s[arg], dtype_of(arg), dtype)
    if isinstance(arg, (bool, int, float)):
        return s.const([arg], dtype)
    raise Refused(f"cannot compute with {arg!r}")


def _common(*args: Arg) -> torch.dtype:
    kinds = [
        dtype_of(a) if isinstance(a, Value) else torch.float64 if isinstance(a, float) else torch.int64 for a in args
    ]
    return torch.float64 if torch.float64 in kinds else torch.int64


def sym_size(s: Scope, node: Node, x: Value, dim: int) -> str:
    """A size of a tensor."""
    return s.size_of(x, dim)


def sym_numel(s: Scope, node: Node, x: Value) -> str:
    """The number of elements."""
    return s.op("Reshape", s.op("Size", s[x]), s.ints(1))


def arithmetic(kind: str) -> Emitter:
    """Numbers in their common type."""

    def emit(s: Scope, node: Node, a: Arg, b: Arg) -> str:
        dtype = _kind(node)
        return s.op(kind, _number(s, a, dtype), _number(s, b, dtype))

    return emit


def sym_sum(s: Scope, node: Node, args: tuple[Arg, ...]) -> str:
    """The sum of several."""
    dtype = _kind(node)
    first, *others = (_number(s, a, dtype) for a in args)
    for other in others:
        first = s.op("Add", first, other)
    return first


def floor_division(s: Scope, node: Node, a: Arg, b: Arg) -> str:
    """Python's ``//``."""
    dtype = _kind(node)
    x, y = _number(s, a, dtype), _number(s, b, dtype)
    if dtype == torch.float64:
        return s.op("Floor", s.op("Div", x, y))
    # Mod has the sign of the divisor, so that the difference divides evenly
    return s.op("Div", s.op("Sub", x, s.op("Mod", x, y)), y)


def true_division(s: Scope, node: Node, a: Arg, b: Arg) -> str:
    """Python's ``/``."""
    return s.op("Div", _number(s, a, torch.float64), _number(s, b, torch.float64))


def comparison(kind: str, negate: bool = False) -> Emitter:
    """Comparison of two numbers."""

    def emit(s: Scope, node: Node, a: Arg, b: Arg) -> str:
        dtype = _common(a, b)
        answer = s.op(kind, _number(s, a, dtype), _number(s, b, dtype))
        return s.op("Not", answer) if negate else answer

    return emit


def logic(kind: str) -> Emitter:
    """Logic on truth values."""

    def emit(s: Scope, node: Node, *args: Arg) -> str:
        return s.op(kind, *(_number(s, a, torch.bool) for a in args))

    return emit


def negative(s: Scope, node: Node, a: Arg) -> str:
    """``-a``."""
    return s.op("Neg", _number(s, a, _kind(node)))


def power(s: Scope, node: Node, a: Arg, b: Arg) -> str:
    """``a ** b``."""
    dtype = _kind(node)
    return s.op("Pow", _number(s, a, dtype), _number(s, b, dtype))


def either(s: Scope, node: Node, condition: Arg, a: Arg, b: Arg) -> str:
    """``a if condition else b``."""
    dtype = _kind(node)
    return s.op("Where", _number(s, condition, torch.bool), _number(s, a, dtype), _number(s, b, dtype))


def convert(s: Scope, node: Node, a: Arg) -> str:
    """``int()``, ``float()``, ``trunc()``."""
    return _number(s, a, _kind(node))


def rounded(kind: str) -> Emitter:
    """``ceil``, ``floor``, ``round``, ``sqrt`` of a number."""

    def emit(s: Scope, node: Node, a: Arg, *digits: Arg) -> str:
        if digits and digits[0] is not None:
            raise Refused("rounds to digits")
        made = s.op(kind, _number(s, a, torch.float64))
        return s.cast(made, torch.float64, _kind(node))

    return emit


def item(s: Scope, node: Node, x: Value) -> str:
    """The only element of a tensor."""
    made = s.op("Reshape", s[x], s.ints(1))
    return s.cast(made, x.tensor.dtype, _kind(node))


SIZES: Mapping[str, Emitter] = {
    "aten.sym_size.int": sym_size,
    "aten.sym_numel.default": sym_numel,
    "aten.item.default": item,
    "aten._local_scalar_dense.default": item,
    "sym.add": arithmetic("Add"),
    "sym.sub": arithmetic("Sub"),
    "sym.mul": arithmetic("Mul"),
    "sym.mod": arithmetic("Mod"),
    "sym.max": arithmetic("Max"),
    "sym.min": arithmetic("Min"),
    "sym.sum": sym_sum,
    "sym.floordiv": floor_division,
    "sym.truediv": true_division,
    "sym.pow": power,
    "sym.neg": negative,
    "sym.eq": comparison("Equal"),
    "sym.ne": comparison("Equal", negate=True),
    "sym.lt": comparison("Less"),
    "sym.le": comparison("LessOrEqual"),
    "sym.gt": comparison("Greater"),
    "sym.ge": comparison("GreaterOrEqual"),
    "sym.and": logic("And"),
    "sym.or": logic("Or"),
    "sym.not": logic("Not"),
    "sym.ite": either,
    "sym.int": convert,
    "sym.float": convert,
    "sym.trunc": convert,
    "sym.sqrt": rounded("Sqrt"),
    "sym.ceil": rounded("Ceil"),
    "sym.floor": rounded("Floor"),
    "sym.round": rounded("Round"),
}
