"""Dimensions: an int, or an integer expression over named symbols, with its own small grammar.

Text never reaches ``sympify`` (which evaluates code): expressions are read with ``ast`` and a fixed
list of functions.
"""

from __future__ import annotations

import ast
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
_DATA_SYMBOL = re.compile(r"(u|zuf)\d+")
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
    if text.isdigit():
        return int(text)
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return simplify(_read(tree))
    except (SyntaxError, TypeError, ValueError, RecursionError, ZeroDivisionError) as error:
        raise ParseError(f"not a dimension: {text!r}") from error


def _read(tree: ast.expr) -> sympy.Expr:
    match tree:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            return sympy.Integer(number)
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_read(operand)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _read(left) + _read(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _read(left) - _read(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _read(left) * _read(right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _read(left) / _read(right)
        case ast.Call(func=ast.Name(id="Pow"), args=[base, exponent], keywords=[]):
            power = _read(exponent)
            if not power.is_Integer or abs(int(power)) > _MAX_POWER:
                raise ValueError("power out of range")
            return _read(base) ** power
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_read(a) for a in arguments))
    raise ValueError(ast.dump(tree))
