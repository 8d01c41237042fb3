"""What a graph is: values, nodes, types, text, verification, reference meaning."""

from ir.core import Arg, Block, Graph, Input, Node, Origin, Output, Value, map_values
from ir.dims import Dim, DimRange, evaluate, show_dim, symbol, symbols_of
from ir.errors import IRError, ParseError, PenstockError
from ir.interpret import interpret
from ir.ops import COND, RETURN, ROWS, WHILE, Op, op
from ir.parse import parse
from ir.text import show
from ir.types import NoneType, ScalarType, TensorType, Type
from ir.verify import Fact, verify

__all__ = [
    "COND", "RETURN", "ROWS", "WHILE", "Arg", "Block", "Dim", "DimRange", "Fact", "Graph", "IRError", "Input",
    "Node", "NoneType", "Op", "Origin", "Output", "ParseError", "PenstockError", "ScalarType",
    "TensorType", "Type", "Value", "evaluate", "interpret", "map_values", "op", "parse", "show",
    "show_dim", "symbol", "symbols_of", "verify",
]  # fmt: skip
