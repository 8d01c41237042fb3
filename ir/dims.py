"""Dimensions: an int, or an integer expression over named symbols, with its own small grammar.

Text never reaches ``sympify`` (which evaluates code): expressions are read with ``ast`` and a fixed
list of functions.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import sympy
from torch.utils._sympy import functions as torch_functions

from ir.errors import ParseError

Dim: TypeAlias = "int | sympy.Expr"

_FUNCTIONS: Mapping[str, Callable[..., sympy.Expr]] = {
    name: getattr(torch_functions, name)
    for name in ("FloorDiv", "ModularIndexing", "Mod", "PythonMod", "CleanDiv", "CeilDiv", "Max", "Min")
} | {
    "CeilToInt": torch_functions.CeilToInt,
    "IntTrueDiv": torch_functions.IntTrueDiv,
    "TruncToInt": torch_functions.TruncToInt,
    "ToFloat": torch_functions.ToFloat,
    "FloorToInt": torch_functions.FloorToInt,
}
_OPERATIONS: Mapping[type[ast.operator], Callable[..., sympy.Expr]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_DATA_SYMBOL = re.compile(r"u_any|(u|zuf)\d+")
_MAX_TEXT = 400
_MAX_POWER = 16


@dataclass(frozen=True, slots=True)
class DimRange:
    """Inclusive bounds of a symbol; ``max`` is ``None`` when there is none."""

    min: int = 0
    max: int | None = None

    def __contains__(self, size: int) -> bool:
        return self.min <= size and (self.max is None or size <= self.max)

    def __str__(self) -> str:
        return f"[{self.min}, {'inf' if self.max is None else self.max}]"


@lru_cache(maxsize=4096)
def symbol(name: str) -> sympy.Symbol:
    """The symbol of that name; the same name is always the same symbol."""
    return sympy.Symbol(name, integer=True, nonnegative=True)


def is_data_symbol(name: str) -> bool:
    """Whether a symbol stands for a number that depends on the data: ``u0``, or ``zuf0`` for a float."""
    return _DATA_SYMBOL.fullmatch(name) is not None


def simplify(expression: Dim | sympy.Integer) -> Dim:
    """An ``int`` where the expression is a number."""
    if isinstance(expression, int):
        return expression
    return int(expression) if expression.is_Integer else expression


def symbols_of(dim: Dim) -> frozenset[str]:
    """Names of the symbols that a dimension depends on."""
    if isinstance(dim, int):
        return frozenset()
    return frozenset(s.name for s in dim.free_symbols)


def evaluate(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The size of ``dim`` when each symbol has the size given; raises KeyError for a missing one."""
    if isinstance(dim, int):
        return dim
    return int(dim.xreplace({s: sympy.Integer(sizes[s.name]) for s in dim.free_symbols}))


def upper_bound(dim: Dim, dims: Mapping[str, DimRange]) -> int | None:
    """An upper bound of a sum or product of dims, where they have bounds."""
    if isinstance(dim, int) or dim.is_Integer:
        return int(dim) if dim >= 0 else None
    if dim.is_Symbol:
        return dims[dim.name].max if dim.name in dims else None
    parts = [upper_bound(a, dims) for a in dim.args] if dim.is_Add or dim.is_Mul else [None]
    known = [p for p in parts if p is not None]
    if len(known) < len(parts):
        return None
    return sum(known) if dim.is_Add else math.prod(known)


@lru_cache(maxsize=65536)
def show_dim(dim: Dim) -> str:
    """Text of a dimension; ``parse_dim`` is the exact inverse.

    >>> show_dim(2 * symbol("n") + 1)
    '2*n + 1'
    """
    if isinstance(dim, int):
        return str(dim)
    return _show(dim)


def _show(e: sympy.Expr) -> str:
    if e.is_Symbol:
        return str(e.name)
    if e.is_Integer:
        return str(int(e))
    if e.is_Rational:
        return f"({e.p}/{e.q})"
    if e.is_Add:
        return " + ".join(_show(a) for a in e.as_ordered_terms())
    if e.is_Mul:
        return "*".join(f"({_show(a)})" if a.is_Add else _show(a) for a in e.as_ordered_factors())
    if e.is_Pow:
        return f"Pow({_show(e.base)}, {_show(e.exp)})"
    return f"{type(e).__name__}({', '.join(_show(a) for a in e.args)})"


def parse_dim(text: str) -> Dim:
    """Read what ``show_dim`` wrote; anything else is a ParseError, never code."""
    if len(text) > _MAX_TEXT:
        raise ParseError(f"dimension of {len(text)} characters is longer than {_MAX_TEXT}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        dim = simplify(_read(tree, _MAX_POWER))
    except (ArithmeticError, AssertionError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise ParseError(f"not a dimension: {text!r}") from error
    if not isinstance(dim, int) and dim.has(sympy.nan, sympy.zoo, sympy.oo):
        raise ParseError(f"not a dimension: {text!r} divides by zero")
    return dim


def _read(tree: ast.expr, powers: int) -> sympy.Expr:
    """``powers`` is how much nested exponents may multiply to: a short text must not mean a huge number."""
    match tree:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            return sympy.Integer(number)
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_read(operand, powers)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
            return _OPERATIONS[type(operation)](_read(left, powers), _read(right, powers))
        case ast.Call(func=ast.Name(id="Pow"), args=[base, exponent], keywords=[]):
            power = _read(exponent, 1)
            if not power.is_Integer or abs(int(power)) > powers:
                raise ValueError("power out of range")
            return _read(base, powers // max(abs(int(power)), 1)) ** power
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_read(a, powers) for a in arguments))
    raise ValueError(ast.dump(tree))
