"""Sizes within a segment: made again from the shapes of its inputs, so that its types stay symbolic."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sympy

from ir import Arg, Dim, Graph, ScalarType, TensorType, Value, op, symbols_of
from ir.dims import is_data_symbol, simplify

_BINARY: Mapping[str, str] = {
    "FloorDiv": "sym.floordiv",
    "Mod": "sym.mod",
    "PythonMod": "sym.mod",
    "Max": "sym.max",
    "Min": "sym.min",
}
"""Functions of two sizes; the rest of what a dimension may be is told by its class in sympy."""


def is_size(value: Value, known: frozenset[str]) -> bool:
    """Whether a value is a number that ``size_node`` can make from sizes of those names."""
    type_ = value.type
    if not isinstance(type_, ScalarType) or type_.kind != "int" or type_.expr is None:
        return False
    names = symbols_of(type_.expr)
    return names <= known and not any(map(is_data_symbol, names)) and _can(type_.expr)


def size_node(graph: Graph, expression: Dim, source: Callable[[str], tuple[Value, int]]) -> Arg:
    """Nodes that compute an expression at the end of a graph; ``source`` tells a tensor and axis of that size."""
    expression = simplify(expression)
    if isinstance(expression, int):
        return expression
    type_ = ScalarType("int", expression)
    if expression.is_Symbol:
        return graph.insert(op("aten.sym_size.int"), *source(expression.name), types=(type_,)).result
    first, *others = (size_node(graph, a, source) for a in expression.args)
    if (name := _operator(expression)) is None:
        raise AssertionError(f"is_size was not asked about {expression}")
    total: Dim = simplify(expression.args[0])
    for argument, other in zip(expression.args[1:], others, strict=True):
        total = simplify(expression.func(total, argument))
        first = graph.insert(op(name), first, other, types=(ScalarType("int", total),)).result
    return first


def plain_sizes(type_: TensorType) -> Mapping[str, int]:
    """Name -> axis of each symbol that is a dimension all by itself."""
    return {d.name: axis for axis, d in enumerate(type_.shape) if not isinstance(d, int) and d.is_Symbol}


def _operator(expression: sympy.Expr) -> str | None:
    if expression.is_Add:
        return "sym.add"
    if expression.is_Mul:
        return "sym.mul"
    name = type(expression).__name__
    return _BINARY[name] if name in _BINARY and len(expression.args) == 2 else None


def _can(expression: Dim) -> bool:
    if isinstance(expression, int) or expression.is_Integer or expression.is_Symbol:
        return True
    return _operator(expression) is not None and all(map(_can, expression.args))
