"""Dimensions: text and expression are exact inverses, and no text runs code or grows without bound."""

from __future__ import annotations

import ast

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from ir import DimRange, ParseError, evaluate, show_dim, symbol, symbols_of
from ir.dims import is_data_symbol, parse_dim, simplify

HOSTILE = (
    "__import__('os').system('touch /tmp/penstock-was-here')",
    "__import__",  # a fine name for a symbol, and nothing else
    "().__class__.__base__.__subclasses__()",
    "n.__class__",
    "[n for n in (1,)][0]",
    "lambda: 1",
    "(n := 3)",
    "eval('1')",
    "open('/etc/passwd')",
    "f'{1}'",
    "9**9**9",
    "n ** 2",
    "1 << 99",
    "Pow(9, 99999999)",
    "Pow(2, Pow(2, 9))",
    "Pow(" * 12 + "9" + ", 16)" * 12,
    "Pow(" * 12 + "(2*n + 1)" + ", 16)" * 12,
    "Pow(x=1)",
    "Max(n, *m)",
    "Max(key=n)",
    "f(n)",
    "n if n else m",
    "n, m",
    "n; m",
    "n @ m",
    "'n'",
    "1.5",
    "1e400",
    "True",
    "None",
    "...",
    "n/0",
    "0/0",
    "FloorDiv(n, 0)",
    "Mod(n, 0)",
    "Mod(-1, 2)",
    "Pow(0, -1)",
    "²",
    "\0",
    "",
    "(" * 300,
    "(" * 190 + "n" + ")" * 190,
    "-" * 399 + "n",
    "n" * 401,
)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:24])
def test_hostile_texts_are_dims_or_parse_errors(text: str) -> None:
    try:
        dim = parse_dim(text)
    except ParseError:  # any other exception fails the test
        return
    else:
        assert isinstance(dim, sympy.Expr)
        assert symbols_of(dim) <= {"n", "__import__"}


@given(st.text(alphabet="nmu019+-*/(), PowMaxFloorDiv_²", max_size=30))
def test_any_text_is_a_dim_or_a_parse_error(text: str) -> None:
    try:
        dim = parse_dim(text)
    except ParseError:
        return
    assert parse_dim(show_dim(dim)) == dim


NAMES = st.sampled_from([symbol("n"), symbol("m"), symbol("u0")])
FUNCTIONS = ("FloorDiv", "Mod", "CeilDiv", "Max", "Min")


def _expressions() -> st.SearchStrategy[sympy.Expr]:
    def extend(inner: st.SearchStrategy[sympy.Expr]) -> st.SearchStrategy[sympy.Expr]:
        texts = st.tuples(st.sampled_from(FUNCTIONS), inner, st.integers(1, 9)).map(
            lambda drawn: parse_dim(f"{drawn[0]}({show_dim(drawn[1])}, {drawn[2]})")
        )
        pairs = st.tuples(inner, inner)
        return texts | pairs.map(lambda p: p[0] + p[1]) | pairs.map(lambda p: p[0] * p[1]) | inner.map(lambda e: e * e)

    return st.recursive(NAMES | st.integers(0, 50).map(sympy.Integer), extend, max_leaves=5)


@given(_expressions())
def test_show_and_parse_are_inverses(expression: sympy.Expr) -> None:
    dim = simplify(expression)
    text = show_dim(dim)
    assert parse_dim(text) == dim
    assert show_dim(parse_dim(text)) == text
    ast.parse(text)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("7", 7),
        ("n", 5),
        ("2*n + 1", 11),
        ("n - 3", 2),
        ("-n + 9", 4),
        ("FloorDiv(n, 2)", 2),
        ("CeilDiv(n, 2)", 3),
        ("Mod(n, 3)", 2),
        ("Max(n, m)", 5),
        ("Min(n, m)", 4),
        ("Pow(n, 2)", 25),
        ("(n + m)*(n + -1*m)", 9),
        ("n*(1/2)*2", 5),
        ("CeilToInt(n/2)", 3),
        ("FloorToInt(n/2)", 2),
        ("ModularIndexing(n, 2, 2)", 0),
    ],
)
def test_evaluate(text: str, want: int) -> None:
    assert evaluate(parse_dim(text), {"n": 5, "m": 4}) == want


def test_evaluate_names_what_is_missing() -> None:
    with pytest.raises(KeyError, match="m"):
        evaluate(symbol("n") + symbol("m"), {"n": 1})


def test_equal_names_are_one_symbol_and_numbers_are_ints() -> None:
    assert symbol("n") is symbol("n")
    assert parse_dim("n - n") == 0
    assert type(parse_dim("2*3")) is int
    assert symbols_of(3) == frozenset()


def test_ranges() -> None:
    assert 3 in DimRange(1, 3)
    assert 4 not in DimRange(1, 3)
    assert 10**9 in DimRange(1)
    assert str(DimRange(1, 3)) == "[1, 3]"
    assert str(DimRange()) == "[0, inf]"


@pytest.mark.parametrize(("name", "yes"), [("u0", True), ("u12", True), ("zuf3", True), ("u", False), ("n", False)])
def test_data_symbols(name: str, yes: bool) -> None:
    assert is_data_symbol(name) is yes
