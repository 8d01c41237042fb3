"""One spelling per way to look at a tensor, so that later passes match one and not seven.

    view, _unsafe_view, flatten, unflatten, view_as  ->  reshape
    reshape(reshape(x, a), b)                        ->  reshape(x, b)
    t, mT, transpose, swapaxes, movedim              ->  permute
    permute(permute(x, p), q)                        ->  permute(x, p then q)
    expand_as                                        ->  expand

Sound: torch defines each as the other, up to strides, which the IR does not have.
Declines to compose when the inner view has another reader: it would be kept beside the new one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ir import Arg, Fact, Graph, Node, Value, op
from ir.types import TensorType
from passes.base import Pass, Remark, Samples, remark
from passes.rewrite import forward, ints, only_user, producer, rewrite

RESHAPE, PERMUTE, EXPAND = "aten.reshape.default", "aten.permute.default", "aten.expand.default"
_RESHAPES = {
    "aten.view.default",
    "aten._unsafe_view.default",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.view_as.default",
    "aten.reshape_as.default",
    "aten._reshape_alias.default",
}
_SWAPS = {"aten.transpose.int", "aten.swapaxes.default", "aten.swapdims.default", "aten.t.default",
          "aten.mT.default", "aten.numpy_T.default", "aten.movedim.int"}  # fmt: skip


@dataclass(frozen=True)
class CanonicalizeViews(Pass):
    """Spells every view as reshape, permute or expand."""

    name: ClassVar[str] = "canonicalize-views"
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.CANONICAL_VIEWS})
    summary: ClassVar[str] = "view, flatten, transpose, t, ... -> reshape, permute; chains -> one"

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        return rewrite(graph, (_to_reshape, _to_permute, _to_expand, _compose_reshapes, _compose_permutes))


def _to_reshape(graph: Graph, node: Node) -> Remark | None:
    if node.op.name not in _RESHAPES:
        return None
    x, result = node.args[0], node.result
    shape = node.args[1] if node.op.name in ("aten.view.default", "aten._unsafe_view.default") else None
    if not isinstance(shape, tuple):
        known = _literal_shape(result.tensor)
        if known is None:
            return remark(node, False, "the new shape has more than one size that is only known at run time")
        shape = known
    name = node.op.name.split(".")[1]
    made = graph.insert(op(RESHAPE), x, shape, before=node, types=(result.type,), name=result.name)
    forward(graph, node, made.result)
    return remark(made, True, f"{name} is reshape")


def _literal_shape(type_: TensorType) -> tuple[int, ...] | None:
    """The shape as literals, -1 for the one dynamic dim."""
    dynamic = [d for d in type_.shape if not isinstance(d, int)]
    if len(dynamic) > 1 or (dynamic and 0 in type_.shape):
        return None
    return tuple(d if isinstance(d, int) else -1 for d in type_.shape)


def _to_permute(graph: Graph, node: Node) -> Remark | None:
    if node.op.name not in _SWAPS:
        return None
    x = node.args[0]
    assert isinstance(x, Value)
    rank = x.tensor.rank
    order = list(range(rank))
    name = node.op.name.split(".")[1]
    if name in ("t", "mT", "numpy_T"):
        order = order[: rank - 2] + order[rank - 2 :][::-1] if name != "numpy_T" else order[::-1]
    else:
        axes = ints(node.args[1:3])
        if axes is None or len(axes) != 2:
            return remark(node, False, "its axes are not literals")
        first, second = (a % rank if rank else 0 for a in axes)
        if name == "movedim":
            order.insert(second, order.pop(first))
        elif rank:
            order[first], order[second] = order[second], order[first]
    made = graph.insert(op(PERMUTE), x, tuple(order), before=node, types=(node.result.type,), name=node.result.name)
    forward(graph, node, made.result)
    return remark(made, True, f"{name} is permute")


def _to_expand(graph: Graph, node: Node) -> Remark | None:
    if node.op.name != "aten.expand_as.default":
        return None
    shape = _literal_shape(node.result.tensor)
    if shape is None or -1 in shape:
        return remark(node, False, "the new shape is only known at run time")
    made = graph.insert(op(EXPAND), node.args[0], shape, before=node, types=(node.result.type,), name=node.result.name)
    forward(graph, node, made.result)
    return remark(made, True, "expand_as is expand")


def _compose_reshapes(graph: Graph, node: Node) -> Remark | None:
    if node.op.name != RESHAPE or (inner := producer(node.args[0], RESHAPE)) is None:
        return None
    if not only_user(inner.result):
        return remark(node, False, "the inner reshape has another reader")
    graph.set_arguments(node, (inner.args[0], *node.args[1:]))
    graph.erase(inner)
    return remark(node, True, "two reshapes are one")


def _compose_permutes(graph: Graph, node: Node) -> Remark | None:
    if node.op.name != PERMUTE or (inner := producer(node.args[0], PERMUTE)) is None:
        return None
    if not only_user(inner.result):
        return remark(node, False, "the inner permute has another reader")
    first, then = _order(inner), _order(node)
    if first is None or then is None:
        return None
    composed: Arg = tuple(first[axis] for axis in then)
    graph.set_arguments(node, (inner.args[0], composed))
    graph.erase(inner)
    return remark(node, True, "two permutes are one")


def _order(node: Node) -> tuple[int, ...] | None:
    order = ints(node.args[1])
    return None if order is None else tuple(a % len(order) for a in order)
