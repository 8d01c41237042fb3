"""Does each row of a result follow from the same row of the arguments alone? A proof for the operators known here.

The walk keeps, per value, the axis along which the rows lie. The rows are counted by a symbol of their own (``u0``), so
the type of each result is a second witness: the symbol must stand at that axis, as ``u0`` or as ``k*u0`` with the rows
outermost, and nowhere else. What is not known to keep rows apart counts as mixing them: the answer errs on that side.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ir.core import Arg, Node, Value
from ir.dims import Dim, is_data_symbol, symbol, symbols_of
from ir.ops import RETURN, ROWS
from ir.row_rules import RESHAPES, RULES, Mixes, aligned, argument, packet_of
from ir.rows import groups, rows_symbol
from ir.types import ScalarType, TensorType


def mixing(node: Node) -> str:
    """Why the region of a ``rows`` node is not known to be row-wise; empty when it is proven."""
    region = node.regions[0]
    _, carried, beside, _ = groups(node)
    walk = RowWalk(rows_symbol(node), region.args[: len(carried) + len(beside)])
    return walk.over(region) or walk.at_the_front(region.returned.args)


class RowWalk:
    """Follows rows through nodes in order.

    Attributes:
        axes: the axis of the rows in each value that holds some.
        sizes: numbers that depend on how many rows there are.
    """

    def __init__(self, name: str, rows: Iterable[Value], sizes: Iterable[Value] = ()) -> None:
        self._symbol = symbol(name)
        self.axes: dict[Value, int] = dict.fromkeys(rows, 0)
        self.sizes = set(sizes)

    def over(self, nodes: Iterable[Node]) -> str:
        """Walk over nodes; why the first of them mixes rows, or nothing."""
        for node in nodes:
            if node.op is RETURN:
                continue
            try:
                self._step(node)
            except Mixes as mixes:
                at = f" at {node.origin}" if str(node.origin) else ""
                return f"{node.op.name}{at} {mixes}"
        return ""

    def at_the_front(self, values: Iterable[Arg]) -> str:
        """Why one of the values is not a tensor with one element of its first axis per row, or nothing."""
        for value in values:
            if not isinstance(value, Value) or self.axes.get(value) != 0:
                return "what comes back does not have its rows at the front"
            if value.tensor.shape[0] != self._symbol:
                return f"what comes back, {value.type}, has not one element per row"
        return ""

    def _step(self, node: Node) -> None:
        followed = [v for v in node.operands if v in self.axes]
        counted = [v for v in node.operands if v in self.sizes]
        if node.op.effects:
            raise Mixes("has effects")
        if counted and node.op.name.startswith("sym."):
            self.sizes.update(node.results)
            return
        packet = packet_of(node)
        if packet in _SIZE_READERS:
            self.sizes.update(v for v in node.results if self._counts(v))
            return
        if counted and (packet not in _TAKE_SIZES or argument(node, "fill_value") in counted):
            raise Mixes("computes with the number of rows")
        if not followed and not counted:
            if any(self._counts(v) for v in node.results):
                raise Mixes("makes a size of its own from the number of rows")
            return
        if node.op.random and packet not in RULES:
            raise Mixes("draws at random")
        if not all(isinstance(v.type, TensorType) for v in node.results):
            raise Mixes("makes one number of many rows")
        axis = self._axis(node, packet, bool(followed))
        for value in node.results:
            self._witness(value, axis)
            self.axes[value] = axis

    def _axis(self, node: Node, packet: str, followed: bool) -> int:
        if node.op is ROWS:
            return _nested(self, node)
        if node.regions:
            raise Mixes("decides by the rows for all of them")
        if not followed or packet in _FILLS:
            return self._filled(node, packet)
        if torch.Tag.pointwise in getattr(node.op.target, "tags", ()) or packet in _POINTWISE:
            return aligned(self.axes, node)
        rule = RULES.get(packet)
        if rule is None:
            raise Mixes("is not known to keep rows apart")
        return rule(self.axes, node)

    def _filled(self, node: Node, packet: str) -> int:
        """Every row is the same: constants, or what has no rows expanded over them."""
        shape = node.results[0].tensor.shape
        found = [axis for axis, dim in enumerate(shape) if self._symbol.name in symbols_of(dim)]
        if (packet not in _FILLS and packet != "expand") or len(found) != 1:
            raise Mixes("numbers the rows")
        return found[0]

    def _counts(self, value: Value) -> bool:
        if isinstance(value.type, TensorType):
            return any(self._symbol.name in symbols_of(d) for d in value.type.shape)
        return isinstance(value.type, ScalarType) and (
            value.type.expr is not None and self._symbol.name in symbols_of(value.type.expr)
        )

    def _witness(self, value: Value, axis: int) -> None:
        shape = value.tensor.shape
        if not 0 <= axis < len(shape) or not self._whole(shape[axis]):
            raise Mixes(f"gives {value.type}, where rows cannot be told apart")
        if any(self._symbol.name in symbols_of(d) for i, d in enumerate(shape) if i != axis):
            raise Mixes(f"gives {value.type}, whose size along another axis depends on the number of rows")

    def _whole(self, dim: Dim) -> bool:
        """A whole number of elements per row."""
        if isinstance(dim, int):
            return False
        share = dim / self._symbol
        data = any(map(is_data_symbol, symbols_of(share)))
        return bool(share.is_integer) and not data


def _nested(walk: RowWalk, node: Node) -> int:
    """Rows of rows: each inner row is one of ours."""
    live, carried, beside, closed = groups(node)
    mine = (live, *carried, *beside)
    if any(walk.axes.get(v) != 0 for v in mine) or len({v.tensor.shape[0] for v in mine}) != 1:
        raise Mixes("picks rows of another kind")
    if any(v in walk.axes or v in walk.sizes for v in closed):
        raise Mixes("hands all rows to a region")
    if why := mixing(node):
        raise Mixes(f"holds {why}")
    return 0


_SIZE_READERS = frozenset(("sym_size", "size", "sym_numel", "numel"))
_FILLS = frozenset({
    "full", "zeros", "ones", "new_full", "new_zeros", "new_ones", "zeros_like", "ones_like", "full_like"
})  # fmt: skip
_TAKE_SIZES = _FILLS | frozenset(("expand", *RESHAPES.split()))
_POINTWISE = frozenset({
    "to", "_to_copy", "type_as", "contiguous", "alias", "detach", "lift_fresh_copy", "masked_fill", "hardswish",
    "floor_divide", "square", "quantize_per_tensor", "dequantize_per_tensor",
})  # fmt: skip
"""Elementwise, although torch does not tag them so."""
