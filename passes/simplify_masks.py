"""Masks that are computed the long way, as model libraries build them  ->  the mask itself

    arange(n) >= 0                         ->  true everywhere
    true & m                               ->  m, expanded
    m[arange(b)[:, None], arange(n)]       ->  m, reshaped: every element, in order
    attention(..., mask=expand(m))         ->  attention(..., mask=m): attention broadcasts by itself

Sound: integer and boolean facts, exact.
Profitable: no [batch, 1, seq, seq] tensor is made per call, and no gather.
Declines an index that is not a whole range over its axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ir import Arg, Fact, Graph, Node, TensorType, Value, op
from ir.types import ScalarType
from passes.base import Pass, Remark, Samples, remark
from passes.canonicalize_views import EXPAND, RESHAPE
from passes.drop_dead_nodes import drop_chain
from passes.match_attention import SDPA
from passes.rewrite import forward, number, producer, rewrite

_MOVES = (RESHAPE, "aten.unsqueeze.default", EXPAND)
_TRUE = "aten.ones.default"
_AND = {"aten.__and__.Tensor", "aten.bitwise_and.Tensor", "aten.logical_and.default"}
_ONES = {"aten.ones.default", "aten.new_ones.default", "aten.ones_like.default"}


@dataclass(frozen=True)
class SimplifyMasks(Pass):
    """Finds out what a mask is, and keeps it as small as it is."""

    name: ClassVar[str] = "simplify-masks"
    summary: ClassVar[str] = "masks built from ranges and gathers -> the mask itself, not yet broadcast"
    requires: ClassVar[frozenset[Fact]] = Pass.requires | {Fact.CANONICAL_VIEWS}

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        return rewrite(graph, (_never_negative, _and_true, _whole_gather, _mask_of_attention))


def _range(value: Arg) -> Node | None:
    """The arange from 0 behind views that only add axes, if a value is one."""
    while (move := producer(value, *_MOVES)) is not None:
        if _live_axes(move.result) != _live_axes(move.args[0]):
            return None
        value = move.args[0]
    found = producer(value, "aten.arange.default", "aten.arange.start")
    if found is None or (found.op.name.endswith("start") and found.args[0] != 0):
        return None
    return found


def _live_axes(value: Arg) -> list[object]:
    return [d for d in value.tensor.shape if d != 1] if isinstance(value, Value) else []


def _never_negative(graph: Graph, node: Node) -> Remark | None:
    if node.op.name != "aten.ge.Scalar" or _range(node.args[0]) is None:
        return None
    low = number(node.args[1])
    if low is None or low > 0:
        return remark(node, False, "the bound is above the start of the range")
    whole = (1,) * node.result.tensor.rank
    made = graph.insert(
        op(_TRUE), whole, before=node, kwargs={"dtype": torch.bool}, types=(TensorType(torch.bool, whole),)
    )
    grown = graph.insert(
        op(EXPAND), made.result, _shape_of(graph, node, node.args[0]), before=node, types=(node.result.type,)
    )
    forward(graph, node, grown.result)
    return remark(grown, True, "a range from 0 is never negative")


def _shape_of(graph: Graph, before: Node, like: Arg) -> Arg:
    """The sizes of a value as arguments: literals, and sizes read at run time."""
    assert isinstance(like, Value)
    sizes: list[Arg] = []
    for axis, dim in enumerate(like.tensor.shape):
        if isinstance(dim, int):
            sizes.append(dim)
        else:
            read = graph.insert(op("aten.sym_size.int"), like, axis, before=before, types=(ScalarType("int", dim),))
            sizes.append(read.result)
    return tuple(sizes)


def _true(value: Arg) -> bool:
    while (move := producer(value, *_MOVES)) is not None:
        value = move.args[0]
    made = producer(value, *_ONES)
    return made is not None and made.result.tensor.dtype is torch.bool


def _and_true(graph: Graph, node: Node) -> Remark | None:
    if node.op.name not in _AND or node.result.tensor.dtype is not torch.bool:
        return None
    for known, other in (node.args[:2], node.args[1::-1]):
        if not _true(known) or not isinstance(other, Value) or other.tensor.dtype is not torch.bool:
            continue
        said = remark(node, True, "one side is always true")
        if other.type == node.result.type:
            made = other
        else:
            shape = tuple(_size(graph, node, axis, (known, other)) for axis in range(node.result.tensor.rank))
            made = graph.insert(op(EXPAND), other, shape, before=node, types=(node.result.type,)).result
        forward(graph, node, made)
        return said
    return None


def _size(graph: Graph, node: Node, axis: int, sides: tuple[Arg, ...]) -> Arg:
    dim = node.result.tensor.shape[axis]
    if isinstance(dim, int):
        return dim
    for side in sides:
        assert isinstance(side, Value)
        place = axis - node.result.tensor.rank + side.tensor.rank
        if place >= 0 and side.tensor.shape[place] == dim:
            read = graph.insert(op("aten.sym_size.int"), side, place, before=node, types=(ScalarType("int", dim),))
            return read.result
    raise AssertionError("a broadcast size comes from one side")


def _whole_gather(graph: Graph, node: Node) -> Remark | None:
    """x[range over axis 0, range over axis 1, ...], each range along an axis of its own, in order."""
    if node.op.name != "aten.index.Tensor":
        return None
    x, indices = node.args[0], node.args[1]
    if not isinstance(x, Value) or not isinstance(indices, tuple) or len(indices) != x.tensor.rank:
        return None
    ranges = [_range(i) for i in indices]
    if not any(ranges):
        return None
    places = []
    for dim, index, whole in zip(x.tensor.shape, indices, ranges, strict=True):
        if whole is None or not isinstance(index, Value) or whole.result.tensor.shape != (dim,):
            return remark(node, False, "an index is not a whole range over its axis")
        live = [axis - index.tensor.rank for axis, d in enumerate(index.tensor.shape) if d != 1]
        places += live if len(live) == 1 else [0]
    if places != sorted(set(places)) or 0 in places:
        return remark(node, False, "the ranges do not lie along axes of their own, in order")
    shape = _reshape_to(graph, node, x)
    made = graph.insert(op(RESHAPE), x, shape, before=node, types=(node.result.type,), name=node.result.name)
    forward(graph, node, made.result)
    return remark(made, True, "a gather of everything, in order, is a reshape")


def _reshape_to(graph: Graph, node: Node, x: Value) -> Arg:
    sizes: list[Arg] = []
    axes = iter(enumerate(x.tensor.shape))
    for dim in node.result.tensor.shape:
        if dim == 1:
            sizes.append(1)
            continue
        axis, source = next((a, d) for a, d in axes if d != 1)
        if isinstance(source, int):
            sizes.append(source)
        else:
            read = graph.insert(op("aten.sym_size.int"), x, axis, before=node, types=(ScalarType("int", source),))
            sizes.append(read.result)
    return tuple(sizes)


def _mask_of_attention(graph: Graph, node: Node) -> Remark | None:
    if node.op.name != SDPA:
        return None
    grown = producer(node.arg(3, "attn_mask"), EXPAND)
    if grown is None or len(node.args) <= 3:
        return None
    small = grown.args[0]
    if not isinstance(small, Value) or small.tensor.rank != grown.result.tensor.rank:
        return None
    graph.set_arguments(node, (*node.args[:3], small, *node.args[4:]))
    drop_chain(graph, grown)
    return remark(node, True, "attention broadcasts the mask by itself")
