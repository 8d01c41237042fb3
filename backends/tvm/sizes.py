"""Numbers made while the model runs: functions of the sizes cost nothing, others are 0-d tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from backends.arguments import SCALARS, Refused
from backends.tvm.pointwise import Formula, select
from backends.tvm.scope import Emitter, Scope, Tensor
from ir import Arg, Node, ScalarType, TensorType, Value


def _kind(node: Node) -> torch.dtype:
    type_ = node.results[0].type
    assert isinstance(type_, ScalarType)
    return SCALARS[type_.kind]


def _known(node: Node) -> Any:
    type_ = node.results[0].type
    return type_.expr if isinstance(type_, ScalarType) else None


def sized(f: Formula | None = None, within: torch.dtype | None = None) -> Emitter:
    """A number: the expression that its type says, or computed from its operands."""

    def emit(s: Scope, node: Node, *args: Arg) -> Any:
        if (known := _known(node)) is not None:
            return known
        if f is None:
            raise Refused("a size that is known only when it runs")
        flat = args[0] if len(args) == 1 and isinstance(args[0], tuple) else args
        numbers = [a for a in flat if a is not None]
        return s.pointwise("number", _kind(node), f, numbers, within or _common(*numbers))

    return emit


def _common(*args: Arg) -> torch.dtype:
    floats = [
        a for a in args
        if isinstance(a, float) or (isinstance(a, Value) and isinstance(a.type, ScalarType) and a.type.kind == "float")
    ]  # fmt: skip
    return torch.float64 if floats else torch.int64


def item(s: Scope, node: Node, x: Value) -> Any:
    """The only element of a tensor; a whole number becomes a symbol."""
    assert isinstance(x.type, TensorType)
    number = s.reshape(s.tensor(x, _kind(node)), ())
    if (known := _known(node)) is None:
        return number
    s.bind(known, number)
    return known


def is_nonzero(s: Scope, node: Node, x: Value) -> Tensor:
    """The truth of the only element."""
    return s.reshape(s.tensor(x, torch.bool), ())


def _floor_division(a: Any, b: Any) -> Any:
    from tvm import tirx

    return tirx.floor(a / b) if "float" in str(a.ty.dtype) else tirx.floordiv(a, b)


def _modulo(a: Any, b: Any) -> Any:
    from tvm import tirx

    return a - tirx.floor(a / b) * b if "float" in str(a.ty.dtype) else tirx.floormod(a, b)


def _tir(name: str) -> Formula:
    def f(*args: Any) -> Any:
        from tvm import tirx

        return getattr(tirx, name)(*args)

    return f


def _sum(*args: Any) -> Any:
    total = args[0]
    for arg in args[1:]:
        total = total + arg
    return total


def either(s: Scope, node: Node, condition: Arg, a: Arg, b: Arg) -> Any:
    """``a if condition else b``."""
    if (known := _known(node)) is not None:
        return known
    dtype = _kind(node)
    return s.pointwise("number", dtype, select, [condition, a, b], [torch.bool, dtype, dtype])


_F64, _BOOL = torch.float64, torch.bool
SIZES: Mapping[str, Emitter] = {
    **{f"aten.{n}": sized() for n in ("sym_size.int", "size.int", "sym_numel.default", "numel.default")},
    **{f"aten.{n}.default": item for n in ("item", "_local_scalar_dense")},
    "aten.is_nonzero.default": is_nonzero,
    "sym.add": sized(lambda a, b: a + b),
    "sym.sub": sized(lambda a, b: a - b),
    "sym.mul": sized(lambda a, b: a * b),
    "sym.mod": sized(_modulo),
    "sym.max": sized(_tir("max")),
    "sym.min": sized(_tir("min")),
    "sym.sum": sized(_sum),
    "sym.floordiv": sized(_floor_division),
    "sym.truediv": sized(lambda a, b: a / b, _F64),
    "sym.pow": sized(_tir("power"), _F64),
    "sym.neg": sized(lambda a: -a),
    "sym.eq": sized(lambda a, b: a == b),
    "sym.ne": sized(lambda a, b: a != b),
    "sym.lt": sized(lambda a, b: a < b),
    "sym.le": sized(lambda a, b: a <= b),
    "sym.gt": sized(lambda a, b: a > b),
    "sym.ge": sized(lambda a, b: a >= b),
    "sym.and": sized(_tir("all"), _BOOL),
    "sym.or": sized(_tir("any"), _BOOL),
    "sym.not": sized(_tir("Not"), _BOOL),
    "sym.ite": either,
    **{f"sym.{n}": sized(lambda a: a, _F64) for n in ("int", "float", "trunc")},
    "sym.sqrt": sized(_tir("sqrt"), _F64),
    "sym.ceil": sized(_tir("ceil"), _F64),
    "sym.floor": sized(_tir("floor"), _F64),
    "sym.round": sized(_tir("nearbyint"), _F64),
}
