"""For each operator known to keep rows apart: along which axis the rows lie in its result (see ``ir.rowwise``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from ir.core import Arg, Node, Value

Axes: TypeAlias = Mapping[Value, int]
"""The axis of the rows in each value that holds some."""
Rule: TypeAlias = Callable[[Axes, Node], int]
"""The axis of the rows in the results of a node that reads rows; raises ``Mixes``."""


class Mixes(Exception):
    """Why a node does not keep rows apart."""


def packet_of(node: Node) -> str:
    """The name of an operator without namespace and overload."""
    parts = node.op.name.split(".")
    return parts[1] if len(parts) == 3 else node.op.name


def argument(node: Node, name: str) -> Arg:
    """An argument by its name in the schema, or its default; ``None`` when there is none of that name."""
    schema = getattr(node.op.target, "_schema", None)
    for index, formal in enumerate(schema.arguments if schema is not None else ()):
        if formal.name == name:
            return node.arg(index, name, formal.default_value if formal.has_default_value() else None)
    return None


def _from_the_right(axes: Axes, values: Iterable[Value]) -> int:
    """How far from the last axis the rows lie, the same in each value that holds some."""
    found = {v.tensor.rank - axes[v] for v in values if v in axes}
    shares = {v.tensor.shape[axes[v]] for v in values if v in axes}
    if len(found) != 1 or len(shares) != 1:
        raise Mixes("brings rows together that lie along different axes")
    return found.pop()


def aligned(axes: Axes, node: Node) -> int:
    """Elementwise, operands broadcast."""
    return node.results[0].tensor.rank - _from_the_right(axes, node.operands)


def _only_first(axes: Axes, node: Node) -> tuple[Value, int]:
    """The first operand, which alone holds rows, and their axis."""
    x, *others = node.operands
    if x not in axes or any(v in axes for v in others):
        raise Mixes("takes rows for weights")
    return x, axes[x]


def _before_last(axes: Axes, node: Node) -> int:
    """Works along the last axis: linear, quantization by rows."""
    x, axis = _only_first(axes, node)
    if axis == x.tensor.rank - 1:
        raise Mixes("works along the axis of the rows")
    return axis


def _norm(axes: Axes, node: Node) -> int:
    x, axis = _only_first(axes, node)
    over = node.args[1]
    if not isinstance(over, tuple) or axis >= x.tensor.rank - len(over):
        raise Mixes("normalizes over the rows")
    return axis


def _batched(axes: Axes, node: Node) -> int:
    """Convolutions, pools, group norm: the first axis is the batch, the first operand alone holds rows."""
    x, axis = _only_first(axes, node)
    spatial = _SPATIAL.get(packet_of(node), 1)
    if axis != 0 or x.tensor.rank < spatial + 2 or argument(node, "training") is True:
        raise Mixes("mixes what does not lie in the batch axis")
    return 0


def _axes_of(axes: Axes, node: Node, x: Value) -> set[int]:
    for name in ("dim", "dims"):
        given = argument(node, name)
        if given is not None:
            listed = given if isinstance(given, (tuple, list)) else (given,)
            return {a % x.tensor.rank for a in listed if isinstance(a, int)}
    return set()


def _along(axes: Axes, node: Node) -> int:
    """Works along given axes and keeps all of them: softmax, cumsum, sort, slice, cat."""
    firsts = [v for v in node.operands if v in axes]
    axis = firsts[0].tensor.rank - _from_the_right(axes, firsts)
    over = _axes_of(axes, node, firsts[0])
    if not over or axis in over or len(firsts) != len(node.operands) or len({v.tensor.rank for v in firsts}) != 1:
        raise Mixes("works along the axis of the rows")
    return axis


def _reduced(axes: Axes, node: Node) -> int:
    x, axis = _only_first(axes, node)
    over = _axes_of(axes, node, x)
    if not over or axis in over:
        raise Mixes("reduces over the rows")
    kept = argument(node, "keepdim") is True
    return axis if kept else axis - sum(a < axis for a in over)


def _dropped(axes: Axes, node: Node) -> int:
    """``select``, ``unbind``, ``squeeze``: given axes go away, where there is something to drop."""
    x, axis = _only_first(axes, node)
    over = _axes_of(axes, node, x)
    if not over or axis in over:
        raise Mixes("picks among the rows")
    gone = {a for a in over if a < axis} if node.results[0].tensor.rank < x.tensor.rank else set()
    if packet_of(node) == "squeeze":
        gone = {a for a in gone if x.tensor.shape[a] == 1}
    return axis - len(gone)


def _unsqueezed(axes: Axes, node: Node) -> int:
    x, axis = _only_first(axes, node)
    at = node.args[1]
    assert isinstance(at, int)
    return axis + (at % (x.tensor.rank + 1) <= axis)


def _stacked(axes: Axes, node: Node) -> int:
    firsts = list(node.operands)
    if not all(v in axes for v in firsts):
        raise Mixes("brings rows and other things together")
    axis = firsts[0].tensor.rank - _from_the_right(axes, firsts)
    at = argument(node, "dim")
    assert isinstance(at, int)
    return axis + (at % (firsts[0].tensor.rank + 1) <= axis)


def _permuted(axes: Axes, node: Node) -> int:
    x, axis = _only_first(axes, node)
    rank = x.tensor.rank
    order = list(range(rank))
    if packet_of(node) == "permute":
        dims = node.args[1]
        assert isinstance(dims, tuple)
        order = [d % rank for d in dims if isinstance(d, int)]
    else:
        pair = node.args[1:3] if packet_of(node) == "transpose" else (0, rank - 1)
        a, b = (d % rank for d in pair if isinstance(d, int))
        order[a], order[b] = order[b], order[a]
    return order.index(axis)


def _reshaped(axes: Axes, node: Node) -> int:
    """What lies before the axis of the rows stays; the rows stay outermost in what follows."""
    x, *others = node.operands
    if x not in axes or any(v in axes for v in others):
        raise Mixes("takes rows for sizes")
    axis = axes[x]
    if node.results[0].tensor.shape[:axis] != x.tensor.shape[:axis]:
        raise Mixes("regroups across the rows")
    return axis


def _matmul(axes: Axes, node: Node) -> int:
    a, b = node.operands[-2:]
    bias = node.operands[0] if len(node.operands) == 3 else None
    rank = node.results[0].tensor.rank
    if a in axes and b in axes:
        right = _from_the_right(axes, (a, b))
        if right < 3:
            raise Mixes("multiplies rows with rows")
        axis = rank - right
    elif a in axes:
        right = a.tensor.rank - axes[a]
        if right == 1:
            raise Mixes("adds up over the rows")
        axis = rank - right + (b.tensor.rank == 1)
    elif b in axes:
        right = b.tensor.rank - axes[b]
        if right == 2 or b.tensor.rank == 1:
            raise Mixes("adds up over the rows")
        axis = rank - right + (a.tensor.rank == 1 and right > 2)
    else:
        raise Mixes("takes rows for a bias")
    if bias is not None and bias in axes and bias.tensor.rank - axes[bias] != rank - axis:
        raise Mixes("brings rows together that lie along different axes")
    return axis


def _attended(axes: Axes, node: Node) -> int:
    if argument(node, "dropout_p") not in (None, 0, 0.0):
        raise Mixes("drops at random")
    right = _from_the_right(axes, node.operands)
    if right < 3 or node.operands[0] not in axes:
        raise Mixes("attends across the rows")
    return node.results[0].tensor.rank - right


def _embedded(axes: Axes, node: Node) -> int:
    weight, index = node.operands[:2]
    if weight in axes or index not in axes:
        raise Mixes("takes rows for weights")
    return axes[index]


def _picked(axes: Axes, node: Node) -> int:
    """``gather`` along another axis: rows pick within themselves; ``index_select``: the same from each row."""
    x, *others = node.operands
    along = argument(node, "dim")
    assert isinstance(along, int)
    right = _from_the_right(axes, node.operands)
    axis = x.tensor.rank - right
    same = all(v in axes for v in others) if packet_of(node) == "gather" else not any(v in axes for v in others)
    if x not in axes or axis == along % x.tensor.rank or not same:
        raise Mixes("picks among the rows")
    return axis


def _padded(axes: Axes, node: Node) -> int:
    x, axis = _only_first(axes, node)
    pads = node.args[1]
    if not isinstance(pads, tuple) or x.tensor.rank - axis <= len(pads) // 2:
        raise Mixes("pads the rows")
    return axis


def _triangle(axes: Axes, node: Node) -> int:
    x, axis = _only_first(axes, node)
    if axis >= x.tensor.rank - 2:
        raise Mixes("numbers the rows")
    return axis


def _expanded(axes: Axes, node: Node) -> int:
    x, axis = node.operands[0], axes.get(node.operands[0])
    if axis is None:
        raise Mixes("takes rows for sizes")
    return node.results[0].tensor.rank - (x.tensor.rank - axis)


def _dropped_out(axes: Axes, node: Node) -> int:
    if node.arg(2, "train") is not False:
        raise Mixes("draws at random")
    return aligned(axes, node)


def _whole_tensor(axes: Axes, node: Node) -> int:
    raise Mixes("quantizes with one scale for all rows")


RESHAPES = "reshape view _unsafe_view flatten unflatten"
_SPATIAL: Mapping[str, int] = {
    f"{kind}{d}d": d
    for kind in ("conv", "avg_pool", "max_pool", "adaptive_avg_pool", "_adaptive_avg_pool", "upsample_nearest")
    for d in (1, 2, 3)
} | {"max_pool2d_with_indices": 2, "upsample_bilinear2d": 2, "batch_norm": 0}
_TABLE: tuple[tuple[Rule, str], ...] = (
    (_before_last, "linear int8_linear_static fp8_linear nvfp4_linear quantize_rows"),
    (_whole_tensor, "int8_linear_dynamic"),
    (_dropped_out, "dropout"),
    (_norm, "layer_norm rms_norm native_layer_norm"),
    (_batched, "group_norm batch_norm " + " ".join(_SPATIAL)),
    (_along, "softmax _softmax log_softmax _log_softmax cumsum cumprod sort topk argsort glu flip"),
    (_along, "slice narrow split split_with_sizes chunk cat"),
    (_reduced, "sum mean amax amin max min argmax argmin any all prod var std var_mean logsumexp linalg_vector_norm"),
    (_dropped, "select unbind squeeze"),
    (_unsqueezed, "unsqueeze"),
    (_stacked, "stack"),
    (_permuted, "permute transpose t"),
    (_reshaped, RESHAPES),
    (_expanded, "expand"),
    (aligned, "expand_as"),
    (_matmul, "matmul mm bmm baddbmm addmm"),
    (_attended, "scaled_dot_product_attention int8_attention"),
    (_embedded, "embedding"),
    (_picked, "gather index_select"),
    (_padded, "pad constant_pad_nd"),
    (_triangle, "tril triu"),
)
RULES: Mapping[str, Rule] = {packet: rule for rule, packets in _TABLE for packet in packets.split()}
