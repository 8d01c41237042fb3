"""Asserts about the number of live rows, as torch.export leaves them behind: which of them always hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ir import ROWS, Arg, DimRange, Graph, Node, ScalarType, Value, symbols_of
from ir.dims import upper_bound
from passes.base import Remark
from passes.drop_dead_nodes import drop_chain

Counted = Callable[[Node], "Value | None"]
"""The mask whose true elements a node counts, or ``None``."""
_COMPARED: Mapping[str, tuple[bool, bool]] = {
    "sym.eq": (True, False),
    "sym.ne": (False, True),
    "sym.gt": (False, True),
    "sym.ge": (True, True),
    "sym.lt": (False, False),
    "sym.le": (True, False),
}
"""What a comparison of a count with 0 gives when the count is 0, and when it is more."""


def drop_assert(graph: Graph, node: Node, counted: Counted) -> Remark | None:
    """Drop an assert that holds for every mask; or for every mask but an empty one, whose rows are a ``rows`` by now.

    Torch asserts that a size is not 0 where it reshapes to ``-1``; a ``rows`` without live rows has nothing to reshape.
    """
    if node.op.name != "aten._assert_scalar.default" or not isinstance(node.args[0], Value):
        return None
    masks: set[Value] = set()
    none, some = (_truth(node.args[0], case, graph.dims, counted, masks) for case in (0, 1))
    matched = all(any(user.op is ROWS for user in mask.uses) for mask in masks)
    if not masks or some is not True or not (none is True or (none is False and matched)):
        return None
    condition = node.args[0].producer
    graph.erase(node)
    if condition is not None:
        drop_chain(graph, condition)
    why = "a count of rows lies between none and all" if none else "with no row alive nothing runs"
    return Remark(f"assert at {node.origin}", True, why)


def _truth(value: Arg, case: int, dims: Mapping[str, DimRange], counted: Counted, masks: set[Value]) -> bool | None:
    """Truth of a condition when no row is alive (case 0) or some are (case 1); ``None``: not known."""
    node = value.producer if isinstance(value, Value) else None
    if node is None:
        return value if isinstance(value, bool) else None
    if node.op.name in ("sym.and", "sym.or", "sym.not"):
        parts = [_truth(a, case, dims, counted, masks) for a in node.args]
        if node.op.name == "sym.not":
            return None if parts[0] is None else not parts[0]
        decided = node.op.name == "sym.or"
        return decided if decided in parts else None if None in parts else not decided
    if node.op.name not in _COMPARED or not _is_count(node.args[0], dims, counted, masks):
        return None
    if node.args[1] == 0:
        return _COMPARED[node.op.name][case]
    bound, most = node.args[1], _most(node.args[0], dims, counted)
    if node.op.name == "sym.le" and isinstance(bound, int) and most is not None and most <= bound:
        return True
    return None


def _is_count(value: Arg, dims: Mapping[str, DimRange], counted: Counted, masks: set[Value]) -> bool:
    """Whether a number is 0 exactly when no row is alive: the count, times sizes that are never 0."""
    node = value.producer if isinstance(value, Value) else None
    if node is None or not isinstance(value, Value):
        return False
    if (mask := counted(node)) is not None:
        masks.add(mask)
        return True
    if node.op.name != "sym.mul":
        return False
    found = [_is_count(a, dims, counted, masks) for a in node.args]
    others = [a for a, is_count in zip(node.args, found, strict=True) if not is_count]
    return any(found) and all(_positive(a, dims) for a in others)


def _positive(value: Arg, dims: Mapping[str, DimRange]) -> bool:
    if isinstance(value, int):
        return value > 0
    expr = value.type.expr if isinstance(value, Value) and isinstance(value.type, ScalarType) else None
    if expr is None or isinstance(expr, int) or not (expr.is_Symbol or expr.is_Mul):
        return False
    return (
        all(name in dims and dims[name].min > 0 for name in symbols_of(expr))
        and expr.subs(dict.fromkeys(expr.free_symbols, 1)) > 0
    )


def _most(value: Arg, dims: Mapping[str, DimRange], counted: Counted) -> int | None:
    node = value.producer if isinstance(value, Value) else None
    mask = counted(node) if node is not None else None
    return None if mask is None else upper_bound(mask.tensor.shape[0], dims)
