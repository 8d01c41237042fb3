"""Does each row of a result follow from the same row of the arguments alone? A proof for the operators known here.

The walk keeps, per value, the axis along which the rows lie. The rows are counted by a symbol of their own (``u0``), so
the type of each result is a second witness: the symbol must stand at that axis, as ``u0`` or as ``k*u0`` with the rows
outermost, and nowhere else. What is not known to keep rows apart counts as mixing them: the answer errs on that side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from ir.core import Arg, Node, Value
from ir.dims import Dim, is_data_symbol, symbol, symbols_of
from ir.ops import RETURN, ROWS
from ir.rows import groups, rows_symbol
from ir.types import ScalarType, TensorType

Rule = Callable[["RowWalk", Node], int]
"""Gives the axis of the rows in the results of a node that reads rows, or raises ``_Mixes``."""


class _Mixes(Exception):
    """Why a node does not keep rows apart."""


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
            except _Mixes as mixes:
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
            raise _Mixes("has effects")
        if counted and node.op.name.startswith("sym."):
            self.sizes.update(node.results)
            return
        packet = _packet(node)
        if packet in _SIZE_READERS:
            self.sizes.update(v for v in node.results if self._counts(v))
            return
        if counted and (packet not in _TAKE_SIZES or _argument(node, "fill_value") in counted):
            raise _Mixes("computes with the number of rows")
        if not followed and not counted:
            if any(self._counts(v) for v in node.results):
                raise _Mixes("makes a size of its own from the number of rows")
            return
        if node.op.random and packet not in RULES:
            raise _Mixes("draws at random")
        if not all(isinstance(v.type, TensorType) for v in node.results):
            raise _Mixes("makes one number of many rows")
        axis = self._axis(node, packet, bool(followed))
        for value in node.results:
            self._witness(value, axis)
            self.axes[value] = axis

    def _axis(self, node: Node, packet: str, followed: bool) -> int:
        if node.op is ROWS:
            return _nested(self, node)
        if node.regions:
            raise _Mixes("decides by the rows for all of them")
        if not followed or packet in _FILLS:
            return self._filled(node, packet)
        if torch.Tag.pointwise in getattr(node.op.target, "tags", ()) or packet in _POINTWISE:
            return _aligned(self, node)
        rule = RULES.get(packet)
        if rule is None:
            raise _Mixes("is not known to keep rows apart")
        return rule(self, node)

    def _filled(self, node: Node, packet: str) -> int:
        """Every row is the same: constants, or what has no rows expanded over them."""
        shape = node.results[0].tensor.shape
        found = [axis for axis, dim in enumerate(shape) if self._symbol.name in symbols_of(dim)]
        if (packet not in _FILLS and packet != "expand") or len(found) != 1:
            raise _Mixes("numbers the rows")
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
            raise _Mixes(f"gives {value.type}, where rows cannot be told apart")
        if any(self._symbol.name in symbols_of(d) for i, d in enumerate(shape) if i != axis):
            raise _Mixes(f"gives {value.type}, whose size along another axis depends on the number of rows")

    def _whole(self, dim: Dim) -> bool:
        """A whole number of elements per row."""
        if isinstance(dim, int):
            return False
        share = dim / self._symbol
        data = any(map(is_data_symbol, symbols_of(share)))
        return bool(share.is_integer) and not data


def _packet(node: Node) -> str:
    parts = node.op.name.split(".")
    return parts[1] if len(parts) == 3 else node.op.name


def _argument(node: Node, name: str) -> Arg:
    schema = getattr(node.op.target, "_schema", None)
    for index, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.name == name:
            return node.arg(index, name, argument.default_value if argument.has_default_value() else None)
    return None


def _from_the_right(walk: RowWalk, values: Iterable[Value]) -> int:
    """How far from the last axis the rows lie, the same in each value that holds some."""
    found = {v.tensor.rank - walk.axes[v] for v in values if v in walk.axes}
    shares = {v.tensor.shape[walk.axes[v]] for v in values if v in walk.axes}
    if len(found) != 1 or len(shares) != 1:
        raise _Mixes("brings rows together that lie along different axes")
    return found.pop()


def _aligned(walk: RowWalk, node: Node) -> int:
    """Elementwise, operands broadcast."""
    return node.results[0].tensor.rank - _from_the_right(walk, node.operands)


def _only_first(walk: RowWalk, node: Node) -> tuple[Value, int]:
    """The first operand, which alone holds rows, and their axis."""
    x, *others = node.operands
    if x not in walk.axes or any(v in walk.axes for v in others):
        raise _Mixes("takes rows for weights")
    return x, walk.axes[x]


def _before_last(walk: RowWalk, node: Node) -> int:
    """Works along the last axis: linear, quantization by rows."""
    x, axis = _only_first(walk, node)
    if axis == x.tensor.rank - 1:
        raise _Mixes("works along the axis of the rows")
    return axis


def _norm(walk: RowWalk, node: Node) -> int:
    x, axis = _only_first(walk, node)
    over = node.args[1]
    if not isinstance(over, tuple) or axis >= x.tensor.rank - len(over):
        raise _Mixes("normalizes over the rows")
    return axis


def _batched(walk: RowWalk, node: Node) -> int:
    """Convolutions, pools, group norm: the first axis is the batch, the first operand alone holds rows."""
    x, axis = _only_first(walk, node)
    spatial = _SPATIAL.get(_packet(node), 1)
    if axis != 0 or x.tensor.rank < spatial + 2 or _argument(node, "training") is True:
        raise _Mixes("mixes what does not lie in the batch axis")
    return 0


def _axes_of(walk: RowWalk, node: Node, x: Value) -> set[int]:
    for name in ("dim", "dims"):
        given = _argument(node, name)
        if given is not None:
            listed = given if isinstance(given, (tuple, list)) else (given,)
            return {a % x.tensor.rank for a in listed if isinstance(a, int)}
    return set()


def _along(walk: RowWalk, node: Node) -> int:
    """Works along given axes and keeps all of them: softmax, cumsum, sort, slice, cat."""
    firsts = [v for v in node.operands if v in walk.axes]
    axis = firsts[0].tensor.rank - _from_the_right(walk, firsts)
    over = _axes_of(walk, node, firsts[0])
    if not over or axis in over or len(firsts) != len(node.operands) or len({v.tensor.rank for v in firsts}) != 1:
        raise _Mixes("works along the axis of the rows")
    return axis


def _reduced(walk: RowWalk, node: Node) -> int:
    x, axis = _only_first(walk, node)
    over = _axes_of(walk, node, x)
    if not over or axis in over:
        raise _Mixes("reduces over the rows")
    kept = _argument(node, "keepdim") is True
    return axis if kept else axis - sum(a < axis for a in over)


def _dropped(walk: RowWalk, node: Node) -> int:
    """``select``, ``unbind``, ``squeeze``: given axes go away, where there is something to drop."""
    x, axis = _only_first(walk, node)
    over = _axes_of(walk, node, x)
    if not over or axis in over:
        raise _Mixes("picks among the rows")
    gone = {a for a in over if a < axis} if node.results[0].tensor.rank < x.tensor.rank else set()
    if _packet(node) == "squeeze":
        gone = {a for a in gone if x.tensor.shape[a] == 1}
    return axis - len(gone)


def _unsqueezed(walk: RowWalk, node: Node) -> int:
    x, axis = _only_first(walk, node)
    at = node.args[1]
    assert isinstance(at, int)
    return axis + (at % (x.tensor.rank + 1) <= axis)


def _stacked(walk: RowWalk, node: Node) -> int:
    firsts = list(node.operands)
    if not all(v in walk.axes for v in firsts):
        raise _Mixes("brings rows and other things together")
    axis = firsts[0].tensor.rank - _from_the_right(walk, firsts)
    at = _argument(node, "dim")
    assert isinstance(at, int)
    return axis + (at % (firsts[0].tensor.rank + 1) <= axis)


def _permuted(walk: RowWalk, node: Node) -> int:
    x, axis = _only_first(walk, node)
    rank = x.tensor.rank
    order = list(range(rank))
    if _packet(node) == "permute":
        dims = node.args[1]
        assert isinstance(dims, tuple)
        order = [d % rank for d in dims if isinstance(d, int)]
    else:
        pair = node.args[1:3] if _packet(node) == "transpose" else (0, rank - 1)
        a, b = (d % rank for d in pair if isinstance(d, int))
        order[a], order[b] = order[b], order[a]
    return order.index(axis)


def _reshaped(walk: RowWalk, node: Node) -> int:
    """What lies before the axis of the rows stays; the rows stay outermost in what follows."""
    x, *others = node.operands
    if x not in walk.axes or any(v in walk.axes for v in others):
        raise _Mixes("takes rows for sizes")
    axis = walk.axes[x]
    if node.results[0].tensor.shape[:axis] != x.tensor.shape[:axis]:
        raise _Mixes("regroups across the rows")
    return axis


def _matmul(walk: RowWalk, node: Node) -> int:
    a, b = node.operands[-2:]
    bias = node.operands[0] if len(node.operands) == 3 else None
    rank = node.results[0].tensor.rank
    if a in walk.axes and b in walk.axes:
        right = _from_the_right(walk, (a, b))
        if right < 3:
            raise _Mixes("multiplies rows with rows")
        axis = rank - right
    elif a in walk.axes:
        right = a.tensor.rank - walk.axes[a]
        if right == 1:
            raise _Mixes("adds up over the rows")
        axis = rank - right + (b.tensor.rank == 1)
    elif b in walk.axes:
        right = b.tensor.rank - walk.axes[b]
        if right == 2 or b.tensor.rank == 1:
            raise _Mixes("adds up over the rows")
        axis = rank - right + (a.tensor.rank == 1 and right > 2)
    else:
        raise _Mixes("takes rows for a bias")
    if bias is not None and bias in walk.axes and bias.tensor.rank - walk.axes[bias] != rank - axis:
        raise _Mixes("brings rows together that lie along different axes")
    return axis


def _attended(walk: RowWalk, node: Node) -> int:
    if _argument(node, "dropout_p") not in (None, 0, 0.0):
        raise _Mixes("drops at random")
    right = _from_the_right(walk, node.operands)
    if right < 3 or node.operands[0] not in walk.axes:
        raise _Mixes("attends across the rows")
    return node.results[0].tensor.rank - right


def _embedded(walk: RowWalk, node: Node) -> int:
    weight, index = node.operands[:2]
    if weight in walk.axes or index not in walk.axes:
        raise _Mixes("takes rows for weights")
    return walk.axes[index]


def _picked(walk: RowWalk, node: Node) -> int:
    """``gather`` along another axis: rows pick within themselves; ``index_select``: the same from each row."""
    x, *others = node.operands
    along = _argument(node, "dim")
    assert isinstance(along, int)
    right = _from_the_right(walk, node.operands)
    axis = x.tensor.rank - right
    same = all(v in walk.axes for v in others) if _packet(node) == "gather" else not any(v in walk.axes for v in others)
    if x not in walk.axes or axis == along % x.tensor.rank or not same:
        raise _Mixes("picks among the rows")
    return axis


def _padded(walk: RowWalk, node: Node) -> int:
    x, axis = _only_first(walk, node)
    pads = node.args[1]
    if not isinstance(pads, tuple) or x.tensor.rank - axis <= len(pads) // 2:
        raise _Mixes("pads the rows")
    return axis


def _triangle(walk: RowWalk, node: Node) -> int:
    x, axis = _only_first(walk, node)
    if axis >= x.tensor.rank - 2:
        raise _Mixes("numbers the rows")
    return axis


def _expanded(walk: RowWalk, node: Node) -> int:
    x, axis = node.operands[0], walk.axes.get(node.operands[0])
    if axis is None:
        raise _Mixes("takes rows for sizes")
    return node.results[0].tensor.rank - (x.tensor.rank - axis)


def _nested(walk: RowWalk, node: Node) -> int:
    """Rows of rows: each inner row is one of ours."""
    live, carried, beside, closed = groups(node)
    if any(walk.axes.get(v) != 0 for v in (live, *carried, *beside)):
        raise _Mixes("picks rows of another kind")
    if any(v in walk.axes or v in walk.sizes for v in closed):
        raise _Mixes("hands all rows to a region")
    if why := mixing(node):
        raise _Mixes(f"holds {why}")
    return 0


def _whole_tensor(walk: RowWalk, node: Node) -> int:
    raise _Mixes("quantizes with one scale for all rows")


_SIZE_READERS = frozenset(("sym_size", "size", "sym_numel", "numel"))
_FILLS = frozenset(
    ["full", "zeros", "ones", "new_full", "new_zeros", "new_ones", "zeros_like", "ones_like", "full_like"]
)
_RESHAPES = "reshape view _unsafe_view flatten unflatten"
_TAKE_SIZES = _FILLS | frozenset(("expand", *_RESHAPES.split()))
_POINTWISE = frozenset(
    [
        "to",
        "_to_copy",
        "type_as",
        "contiguous",
        "alias",
        "detach",
        "lift_fresh_copy",
        "masked_fill",
        "hardswish",
        "floor_divide",
        "square",
        "quantize_per_tensor",
        "dequantize_per_tensor",
    ]
)
_SPATIAL: Mapping[str, int] = {
    f"{kind}{d}d": d
    for kind in ("conv", "avg_pool", "max_pool", "adaptive_avg_pool", "_adaptive_avg_pool", "upsample_nearest")
    for d in (1, 2, 3)
} | {"max_pool2d_with_indices": 2, "upsample_bilinear2d": 2, "batch_norm": 0}
_TABLE: tuple[tuple[Rule, str], ...] = (
    (_before_last, "linear int8_linear_static fp8_linear nvfp4_linear quantize_rows"),
    (_whole_tensor, "int8_linear_dynamic"),
    (_norm, "layer_norm rms_norm native_layer_norm"),
    (_batched, "group_norm batch_norm " + " ".join(_SPATIAL)),
    (_along, "softmax _softmax log_softmax _log_softmax cumsum cumprod sort topk argsort glu flip"),
    (_along, "slice narrow split split_with_sizes chunk cat"),
    (_reduced, "sum mean amax amin max min argmax argmin any all prod var std var_mean logsumexp linalg_vector_norm"),
    (_dropped, "select unbind squeeze"),
    (_unsqueezed, "unsqueeze"),
    (_stacked, "stack"),
    (_permuted, "permute transpose t"),
    (_reshaped, _RESHAPES),
    (_expanded, "expand"),
    (_matmul, "matmul mm bmm baddbmm addmm"),
    (_attended, "scaled_dot_product_attention int8_attention"),
    (_embedded, "embedding"),
    (_picked, "gather index_select"),
    (_padded, "pad constant_pad_nd"),
    (_triangle, "tril triu"),
)
RULES: Mapping[str, Rule] = {packet: rule for rule, packets in _TABLE for packet in packets.split()}
