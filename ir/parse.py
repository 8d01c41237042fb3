"""Reads the text form of a graph. A fault names its line; nothing in a text can run code.

Weights are not in the text: pass them to ``parse``, or get params without tensors (enough for passes
that look at types only).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ir.core import Arg, Block, Graph, Node, Origin, Output, Value
from ir.dims import Dim, DimRange, parse_dim
from ir.errors import IRError, ParseError
from ir.ops import REGIONS, op
from ir.text import VERSION
from ir.types import DTYPES, NoneType, ScalarType, TensorType, Type

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<value>%[A-Za-z0-9_]+)
    | (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<constant>!complex\([^)]*\)|!device\([a-z]+(?::\d+)?\)|![A-Za-z0-9_.\-+]+)
    | (?P<number>-?(?:\d+\.\d*(?:[eE][+-]?\d+)?|\d+(?:[eE][+-]?\d+)?))
    | (?P<word>[A-Za-z_][A-Za-z0-9_.]*)
    | (?P<mark>->|[()\[\]{}:,=<>])
    )""",
    re.VERBOSE,
)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_MAX_NESTING = 32
_CONSTANTS: Mapping[str, Any] = {
    **{f"!{name}": dtype for name, dtype in DTYPES.items()},
    "!inf": float("inf"),
    "!-inf": float("-inf"),
    "!nan": float("nan"),
    **{
        f"!{m}": getattr(torch, m)
        for m in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
    },
    **{f"!{layout}": getattr(torch, layout) for layout in ("strided", "sparse_coo", "sparse_csr")},
}


def parse(text: str, weights: Mapping[str, torch.Tensor] | None = None) -> Graph:
    """The graph that a text describes.

    Args:
        text: what ``show`` wrote.
        weights: tensors of the params; each must have the type that the text says.

    Raises:
        ParseError: with the line and its number.
    """
    return _Reader(text, weights).graph()


@dataclass
class _Line:
    number: int
    text: str
    origin: Origin
    at: int = 0

    def fail(self, what: str) -> ParseError:
        return ParseError(f"line {self.number}: {what}", where=self.text.strip()[:160])

    def peek(self) -> str:
        found = _TOKEN.match(self.text, self.at)
        return found.group().strip() if found else ""

    def take(self, expected: str | None = None) -> str:
        found = _TOKEN.match(self.text, self.at)
        if found is None:
            raise self.fail(f"expected {expected or 'more'} at column {self.at + 1}")
        token = found.group().strip()
        if expected is not None and token != expected:
            raise self.fail(f"expected {expected!r}, found {token!r}")
        self.at = found.end()
        return token

    def done(self) -> bool:
        return not self.text[self.at :].strip()

    def end(self) -> None:
        if not self.done():
            raise self.fail(f"unexpected {self.peek() or self.text[self.at :]!r}")

    def name(self) -> str:
        token = self.take()
        if not token.startswith("%"):
            raise self.fail(f"expected a %value, found {token!r}")
        return token[1:]

    def string(self) -> str:
        token = self.take()
        try:
            decoded = json.loads(token)
        except ValueError:
            decoded = None
        if not isinstance(decoded, str):
            raise self.fail(f"expected a quoted text, found {token!r}")
        return decoded

    def type(self) -> Type:
        word = self.take()
        if word == "none":
            return NoneType()
        if word in DTYPES and self.peek() == "[":
            self.take("[")
            return TensorType(DTYPES[word], self._dims("]"))
        if word in ("int", "float", "bool"):
            if self.peek() == "<":
                self.take("<")
                return ScalarType(word, self._dims(">")[0])
            return ScalarType(word)
        raise self.fail(f"not a type: {word!r}")

    def _dims(self, close: str) -> tuple[Dim, ...]:
        depth, start = 0, self.at
        dims: list[Dim] = []
        for index in range(self.at, len(self.text)):
            c = self.text[index]
            if (c == "," or c == close) and depth == 0:
                piece = self.text[start:index].strip()
                if piece or dims or c == ",":
                    dims.append(self._dim(piece))
                start = index + 1
                if c == close:
                    self.at = index + 1
                    return tuple(dims)
            depth += (c == "(") - (c == ")")
        raise self.fail(f"missing {close!r}")

    def _dim(self, piece: str) -> Dim:
        try:
            return parse_dim(piece)
        except ParseError as error:
            raise self.fail(error.what) from error


class _Reader:
    def __init__(self, text: str, weights: Mapping[str, torch.Tensor] | None) -> None:
        self._lines = [self._split(i, line) for i, line in enumerate(text.splitlines(), 1)]
        self._lines = [line for line in self._lines if line.text.strip()]
        self._at = 0
        self._weights = weights

    @staticmethod
    def _split(number: int, line: str) -> _Line:
        code, comment = line, ""
        cut = line.rfind("  # ")  # an origin holds no double space, so the last one starts it
        if cut >= 0 and '"' not in _STRING.sub("", line[:cut]):
            code, comment = line[:cut], line[cut + 4 :]
        path, _, where = comment.partition(" @ ")
        if comment and not where and re.search(r"\.py:\d+$", path):
            path, where = "", path
        return _Line(number, code, Origin(path, where))

    def _next(self) -> _Line:
        if self._at >= len(self._lines):
            raise ParseError("the text ends before the last return")
        self._at += 1
        return self._lines[self._at - 1]

    def graph(self) -> Graph:
        line = self._next()
        if line.text.split() != ["penstock-ir", str(VERSION)]:
            raise line.fail(f"expected 'penstock-ir {VERSION}': not IR, or of another version")
        line = self._next()
        line.take("graph")
        graph = Graph(line.string())
        scope: dict[str, Value] = {}
        while (line := self._next()).peek() in ("dim", "input", "state", "param"):
            self._declaration(graph, scope, line)
        self._at -= 1
        self._block(graph, graph.body, scope, 0)
        if self._at < len(self._lines):
            raise self._lines[self._at].fail("text after the last return")
        return graph

    def _declaration(self, graph: Graph, scope: dict[str, Value], line: _Line) -> None:
        kind = line.take()
        if kind == "dim":
            self._dim_range(graph, line)
            return
        value_name = line.name()
        line.take(":")
        type_ = line.type()
        name = line.string()
        line.end()
        if value_name in scope:
            raise line.fail(f"%{value_name} is defined twice")
        try:
            scope[value_name] = graph.add_input(kind, name, type_, value_name)
        except IRError as error:
            raise line.fail(error.what) from error
        if kind == "param" and self._weights is not None:
            if name not in self._weights:
                raise line.fail(f"there is no weight named {name!r}")
            tensor = self._weights[name]
            if TensorType(tensor.dtype, tuple(tensor.shape)) != type_:
                raise line.fail(f"weight {name!r} is {list(tensor.shape)} {tensor.dtype}, the text says {type_}")
            graph.weights.add(name, tensor)

    @staticmethod
    def _dim_range(graph: Graph, line: _Line) -> None:
        name = line.take()
        line.take("[")
        low = line.take()
        line.take(",")
        high = line.take()
        line.take("]")
        line.end()
        if not name.isidentifier() or name in graph.dims:
            raise line.fail(f"{name} is defined twice" if name in graph.dims else f"not a name: {name}")
        try:
            bounds = DimRange(int(low), None if high == "inf" else int(high))
        except ValueError as error:
            raise line.fail("bounds of a dim are whole numbers") from error
        if bounds.min < 0 or bounds.min not in bounds:
            raise line.fail(f"the range {bounds} of {name} is empty or negative")
        graph.dims[name] = bounds

    def _block(self, graph: Graph, block: Block, scope: dict[str, Value], depth: int) -> None:
        if depth > _MAX_NESTING:
            raise self._lines[self._at - 1].fail(f"regions nest deeper than {_MAX_NESTING}")
        while True:
            line = self._next()
            if line.peek() == "return":
                self._return(graph, block, scope, line)
                return
            self._node(graph, block, scope, line, depth)

    def _return(self, graph: Graph, block: Block, scope: dict[str, Value], line: _Line) -> None:
        line.take("return")
        values: list[Arg] = []
        outputs = []
        while not line.done():
            if values:
                line.take(",")
            if block is graph.body:
                kind = "output"
                if line.peek() in ("state", "trace"):
                    kind = line.take()
                outputs.append(Output(kind, line.string()))
            values.append(self._arg(line, scope))
        graph.returns(*values, block=block, outputs=outputs)

    def _node(self, graph: Graph, block: Block, scope: dict[str, Value], line: _Line, depth: int) -> None:
        results: list[tuple[str, Type]] = []
        while line.peek().startswith("%"):
            name = line.name()
            line.take(":")
            results.append((name, line.type()))
            if line.peek() == ",":
                line.take(",")
        if results:
            line.take("=")
        try:
            operation = op(line.take())
        except ParseError as error:
            raise line.fail(error.what) from error
        args, kwargs = self._arguments(line, scope)
        hints: dict[str, int | str] = {}
        if line.peek() == "{":
            line.take("{")
            while line.peek() != "}":
                key = line.take()
                line.take("=")
                hint = _literal(line.take(), line)
                if not isinstance(hint, (int, str)) or isinstance(hint, bool):
                    raise line.fail(f"not a hint: {hint!r}")
                hints[key] = hint
                if line.peek() == ",":
                    line.take(",")
            line.take("}")
        regions: tuple[Block, ...] = ()
        if line.peek() == "do":
            line.take("do")
            line.end()
            regions = tuple(self._region(graph, depth) for _ in range(REGIONS.get(operation.name, 0)))
        line.end()
        node = graph.insert(
            operation, *args, block=block, origin=line.origin, regions=regions,
            types=[t for _, t in results], hints=hints, kwargs=kwargs,
        )  # fmt: skip
        self._define(node, results, scope, line)

    @staticmethod
    def _define(node: Node, results: list[tuple[str, Type]], scope: dict[str, Value], line: _Line) -> None:
        for (name, _), value in zip(results, node.results, strict=True):
            if name in scope:
                raise line.fail(f"%{name} is defined twice")
            value.name = name
            scope[name] = value

    def _region(self, graph: Graph, depth: int) -> Block:
        line = self._next()
        line.take("region")
        line.take("(")
        inner: dict[str, Value] = {}
        while line.peek() != ")":
            name = line.name()
            if name in inner:
                raise line.fail(f"%{name} is defined twice")
            line.take(":")
            inner[name] = Value(line.type(), name)
            if line.peek() == ",":
                line.take(",")
        line.take(")")
        line.end()
        block = Block(list(inner.values()))
        self._block(graph, block, inner, depth + 1)
        self._next().take("end")
        return block

    def _arguments(self, line: _Line, scope: dict[str, Value]) -> tuple[list[Arg], dict[str, Arg]]:
        args: list[Arg] = []
        kwargs: dict[str, Arg] = {}
        line.take("(")
        while line.peek() != ")":
            if re.match(r"\s*[A-Za-z_]\w*\s*=", line.text[line.at :]):
                key = line.take()
                line.take("=")
                if key in kwargs:
                    raise line.fail(f"{key} is given twice")
                kwargs[key] = self._arg(line, scope)
            elif kwargs:
                raise line.fail("a positional argument after a keyword")
            else:
                args.append(self._arg(line, scope))
            if line.peek() == ",":
                line.take(",")
            elif line.peek() != ")":
                raise line.fail(f"expected ',' or ')', found {line.peek()!r}")
        line.take(")")
        return args, kwargs

    def _arg(self, line: _Line, scope: dict[str, Value], depth: int = 0) -> Arg:
        token = line.take()
        if token.startswith("%"):
            if token[1:] not in scope:
                raise line.fail(f"{token} is used before it is defined")
            return scope[token[1:]]
        if token == "[" and depth < _MAX_NESTING:
            items: list[Arg] = []
            while line.peek() != "]":
                items.append(self._arg(line, scope, depth + 1))
                if line.peek() == ",":
                    line.take(",")
            line.take("]")
            return tuple(items)
        return _literal(token, line)


def _literal(token: str, line: _Line) -> Arg:
    if token in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[token]
    try:
        if token.startswith('"'):
            return str(json.loads(token))
        if token in _CONSTANTS:
            constant: Arg = _CONSTANTS[token]
            return constant
        if token.startswith("!device("):
            return torch.device(token[8:-1])
        if token.startswith("!complex("):
            real, imaginary = token[9:-1].split(",")
            return complex(float(real), float(imaginary))
        return float(token) if any(c in token for c in ".eE") else int(token)
    except (ValueError, RuntimeError) as error:
        raise line.fail(f"not a literal: {token!r}") from error
