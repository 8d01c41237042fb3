"""A region for live rows while it is filled: which values it takes, and how they are counted there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ir import COND, ROWS, Block, Graph, Node, Origin, ScalarType, TensorType, Value, op
from ir.dims import Dim, symbol, symbols_of
from ir.errors import UnsupportedError
from ir.rows import fresh_symbol, retyped
from passes.depth_parts import copy_nodes


class Region:
    """The body of a ``rows``; of a ``cond`` where the batch is one row for good, so that nothing is gathered.

    Attributes:
        block: to be filled.
        table: a value outside to what stands for it inside.
        sizes: what the number of rows is called outside to what it is called inside.
    """

    def __init__(
        self, graph: Graph, rows: Dim, live: Value, carried: Sequence[Value], beside: Sequence[Value],
        outside: Iterable[Value], origin: Origin,
    ) -> None:  # fmt: skip
        """Take what is carried, what is beside it, and what else the region reads from ``outside``.

        Raises:
            UnsupportedError: a value has the rows elsewhere than along its first axis.
        """
        self._graph, self._live, self._origin = graph, live, origin
        self.sizes: dict[object, Dim] = {} if isinstance(rows, int) else {rows: symbol(fresh_symbol(graph))}
        self._carried, self._beside, self._closed = list(carried), list(beside), list[Value]()
        numbers: list[Value] = []
        for value in dict.fromkeys(outside):
            if value in self._carried or value in self._beside:
                continue
            if isinstance(value.type, ScalarType) and _counts(value, rows):
                numbers.append(value)
            elif not _counts(value, rows):
                self._closed.append(value)
            elif value.tensor.shape[0] == rows:
                self._beside.append(value)
            else:
                raise UnsupportedError(
                    f"no exits: %{value.name}, {value.type}, has not one element of its first axis per row",
                    where=str(value.origin),
                )
        self.table: dict[Value, Value] = {}
        for value in (*self._carried, *self._beside, *self._closed):
            self.table[value] = Value(retyped(value.type, self.sizes), value.name)
        self._arguments = dict(self.table)
        self.block = Block(list(self._arguments.values()))
        for value in numbers:
            self._number(value)

    def of(self, value: Value) -> Value:
        """What stands for a value from outside that was handed in."""
        return self._arguments[value]

    def done(self, returned: Sequence[Value]) -> list[Value]:
        """End the region with one value per carried one; gives what they are outside."""
        self._graph.returns(*returned, block=self.block)
        end = self._graph.body.returned
        types = [v.type for v in self._carried]
        if self.sizes:
            groups = (tuple(self._carried), tuple(self._beside), tuple(self._closed))
            node = self._graph.insert(
                ROWS, self._live, *groups, before=end, regions=(self.block,), origin=self._origin, types=types
            )
        else:
            node = self._alone(end)
        for old, new in zip(self._carried, node.results, strict=True):
            new.name = old.name
        return list(node.results)

    def _alone(self, end: Node) -> Node:
        """One row: it is live or it is not."""
        given = (*self._carried, *self._beside, *self._closed)
        other = Block([Value(v.type, v.name) for v in given])
        self._graph.returns(*other.args[: len(self._carried)], block=other)
        flag = self._graph.insert(op("aten.any.default"), self._live, before=end, origin=self._origin, name="live")
        return self._graph.insert(
            COND, flag.result, given, before=end, regions=(self.block, other), origin=self._origin,
            types=[v.type for v in self._carried],
        )  # fmt: skip

    def _number(self, value: Value) -> Value:
        """A number that depends on how many rows there are, made again of what is at hand."""
        if value in self.table:
            return self.table[value]
        node = value.producer
        assert node is not None and isinstance(value.type, ScalarType)
        if value.type.expr in self.sizes:
            first = self.block.args[0]
            made = self._graph.insert(
                op("aten.sym_size.int"), first, 0, block=self.block, origin=self._origin,
                types=[retyped(value.type, self.sizes)], name=value.name,
            )  # fmt: skip
            self.table[value] = made.result
            return made.result
        for operand in node.operands:
            if isinstance(operand.type, ScalarType) and operand not in self.table:
                self._number(operand)
        if any(v not in self.table for v in node.operands):
            raise UnsupportedError(f"no exits: %{value.name} is computed of the number of rows", where=str(node.origin))
        copy_nodes(self._graph, [node], self.table, self.block, None, self.sizes)
        return self.table[value]


def _counts(value: Value, rows: Dim) -> bool:
    """Whether the number of rows stands in the type of a value."""
    if isinstance(rows, int):
        return False
    (name,) = symbols_of(rows)
    if isinstance(value.type, TensorType):
        return any(name in symbols_of(d) for d in value.type.shape)
    return isinstance(value.type, ScalarType) and value.type.expr is not None and name in symbols_of(value.type.expr)
