"""f(x) that is always x  ->  x

    dropout outside of training, clone, detach, alias, contiguous, a cast to the same type, add 0, mul 1,
    a full slice, an expand / reshape / permute that changes nothing, cat of one with empty ones, an assertion about
    types that the types prove

Sound: values are immutable here, so a copy is its original.
Declines an assertion that types do not prove, dropout in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ir import Arg, Fact, Graph, Node, Value
from passes.base import Pass, Remark, Samples, remark
from passes.canonicalize_scalars import CAST
from passes.canonicalize_views import EXPAND, PERMUTE, RESHAPE
from passes.rewrite import forward, ints, number, producer, rewrite

_COPIES = {
    "aten.clone.default",
    "aten.detach.default",
    "aten.detach_.default",
    "aten.alias.default",
    "aten.contiguous.default",
    "aten.lift_fresh.default",
    "aten.lift_fresh_copy.default",
    "aten.positive.default",
    "aten.resolve_conj.default",
    "aten.resolve_neg.default",
}
_DROPOUTS = {"aten.dropout.default", "aten.feature_dropout.default", "aten.native_dropout.default",
             "aten.alpha_dropout.default", "aten.dropout_.default"}  # fmt: skip
_END = 2**62  # torch writes "to the end" as a huge int


@dataclass(frozen=True)
class RemoveNoOps(Pass):
    """Takes out operations that give back what they got."""

    name: ClassVar[str] = "remove-no-ops"
    summary: ClassVar[str] = "dropout in eval, copies, casts and views that change nothing, proven asserts -> nothing"
    gives: ClassVar[frozenset[Fact]] = frozenset()

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        return rewrite(graph, (_assertion, _dropout, _no_op, _undone_cast))


def _assertion(graph: Graph, node: Node) -> Remark | None:
    if node.op.name != "aten._assert_tensor_metadata.default":
        return None
    x = node.args[0]
    if not isinstance(x, Value):
        return None
    dtype = node.arg(3, "dtype")
    if (dtype is not None and dtype != x.tensor.dtype) or node.arg(1, "size") or node.arg(2, "stride"):
        return remark(node, False, "the types do not prove it")
    said = remark(node, True, "the types prove it")
    graph.erase(node)
    return said


def _dropout(graph: Graph, node: Node) -> Remark | None:
    if node.op.name not in _DROPOUTS or len(node.results) != 1:
        return None
    if node.arg(2, "train") and number(node.arg(1, "p")) != 0.0:
        return remark(node, False, "the model was captured in training mode")
    return _take_out(graph, node, "dropout does nothing outside of training")


def _no_op(graph: Graph, node: Node) -> Remark | None:
    if len(node.results) != 1:
        return None
    x = node.args[0] if node.args else None
    if node.op.name == "aten.cat.default" and isinstance(x, tuple):
        return _cat_of_one(graph, node, x)
    if not isinstance(x, Value) or x.type != node.result.type:
        return None
    name = node.op.name
    if name in _COPIES:
        return _take_out(graph, node, "values are never changed in place")
    if name == CAST or name in (RESHAPE, EXPAND):
        return _take_out(graph, node, "it changes nothing")
    if name == PERMUTE and _in_order(ints(node.args[1])):
        return _take_out(graph, node, "it changes nothing")
    if name == "aten.slice.Tensor" and _full(node, x):
        return _take_out(graph, node, "it takes everything")
    neutral = {"aten.add.Tensor": 0.0, "aten.sub.Tensor": 0.0, "aten.mul.Tensor": 1.0, "aten.div.Tensor": 1.0}
    if name in neutral and number(node.args[1]) == neutral[name]:
        return _take_out(graph, node, f"{name.split('.')[1]} {neutral[name]:g}")
    return None


def _cat_of_one(graph: Graph, node: Node, parts: tuple[Arg, ...]) -> Remark | None:
    """Of one that is not empty: a cache that begins as one of no tokens, say."""
    full = [v for v in parts if isinstance(v, Value) and 0 not in v.tensor.shape]
    if not full and len(parts) == 1:
        full = [v for v in parts if isinstance(v, Value)]
    if len(full) != 1 or full[0].type != node.result.type:
        return None
    said = remark(node, True, "cat of one" if len(parts) == 1 else "cat of one, the others are empty")
    forward(graph, node, full[0])
    return said


def _in_order(axes: tuple[int, ...] | None) -> bool:
    return axes is not None and all(axis % len(axes) == place for place, axis in enumerate(axes))


def _full(node: Node, x: Value) -> bool:
    start, end, step = node.arg(2, "start"), node.arg(3, "end"), node.arg(4, "step", 1)
    return start in (None, 0) and (end is None or (isinstance(end, int) and end >= _END)) and step == 1


def _undone_cast(graph: Graph, node: Node) -> Remark | None:
    """to(to(x, wider), x.dtype) is x: widening loses nothing."""
    if node.op.name != CAST or (inner := producer(node.args[0], CAST)) is None:
        return None
    x = inner.args[0]
    if not isinstance(x, Value) or x.type != node.result.type or not _widens(x.tensor.dtype, inner.result.tensor.dtype):
        return None
    said = remark(node, True, "the cast there loses nothing")
    forward(graph, node, x)
    return said


def _widens(narrow: torch.dtype, wide: torch.dtype) -> bool:
    if narrow.is_floating_point and wide.is_floating_point and not narrow.is_complex and not wide.is_complex:
        a, b = torch.finfo(narrow), torch.finfo(wide)
        return a.max <= b.max and a.eps >= b.eps and a.tiny >= b.tiny
    return narrow is torch.bool and wide is not torch.bool


def _take_out(graph: Graph, node: Node, why: str) -> Remark:
    said = remark(node, True, why)
    x = node.args[0]
    assert isinstance(x, Value)
    forward(graph, node, x)
    return said
