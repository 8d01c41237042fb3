"""block1; block2; ... blockL  ->  while (i < count) { block(weights[i]) }

The weights of one place are stacked to ``[L, ...]`` and selected by the number of the turn; weights that all blocks
share are read as they are, and with no others the count may exceed the number of blocks. The count is a setting, int64
``[]``.
"""

from __future__ import annotations

import torch

from ir import WHILE, Block, Graph, ScalarType, TensorType, Value
from ir.dims import Dim
from ir.errors import UnsupportedError
from passes.depth_parts import Parts, copy_nodes, erase_unread, hoist
from passes.depth_scores import Emitter

COUNT = "depth.count"
_FLAG, _NUMBER = TensorType(torch.bool, ()), TensorType(torch.int64, ())


def roll_blocks(graph: Graph, parts: Parts, count: int) -> None:
    """Roll the blocks into one loop, in place; ``count`` turns unless a call says otherwise.

    Raises:
        UnsupportedError: the blocks are not equal up to their weights, or a weight is not at hand.
    """
    repeats = parts.repeats
    if repeats.uneven:
        raise UnsupportedError(f"the blocks are not equal: {repeats.uneven}")
    stacked = _stack(graph, parts)
    limit = graph.add_input("state", COUNT, _NUMBER, "count")
    graph.initial[COUNT] = torch.tensor(count)
    hoist(graph, parts)
    inside = {n for b in repeats.blocks for n in b.nodes}
    first = next(n for n in graph.body if n in inside)
    origin = repeats.blocks[0].carried_out.origin
    start = Emitter(graph, origin, graph.body, first)("full.default", (), 0, called="start", dtype=torch.int64)
    state = parts.states[0]
    sizes = {v: a for v in repeats.shared if (a := _axis(v, state)) is not None}
    shared = [v for v in repeats.shared if v not in sizes]
    closed = (limit, *stacked.values(), *shared)
    given = (start, state, *closed)

    test = Block([Value(v.type, v.name) for v in given])
    emit = Emitter(graph, origin, test)
    goes = emit("lt.Tensor", test.args[0], test.args[2])
    if stacked:
        goes = emit("logical_and.default", goes, emit("lt.Scalar", test.args[0], parts.depth))
    graph.returns(goes, block=test)

    body = Block([Value(v.type, v.name) for v in given])
    emit = Emitter(graph, origin, body)
    turn, hidden = body.args[:2]
    table = dict(zip(shared, body.args[3 + len(stacked) :], strict=True)) | {state: hidden}
    for value, axis in sizes.items():
        table[value] = emit("sym_size.int", hidden, axis, called=value.name)
    at = emit("reshape.default", turn, (1,), called="turn")
    for value, whole in zip(stacked, body.args[3 : 3 + len(stacked)], strict=True):
        picked = emit("index_select.default", whole, 0, at)
        table[value] = emit("squeeze.dim", picked, 0, called=value.name)
    copy_nodes(graph, repeats.blocks[0].nodes, table, body)
    graph.returns(emit("add.Tensor", turn, 1), table[repeats.blocks[0].carried_out], block=body)

    loop = graph.insert(
        WHILE, (start, state), closed, before=first, origin=origin, regions=(test, body), types=[_NUMBER, state.type],
        name="rolled",
    )  # fmt: skip
    graph.replace(parts.states[-1], loop.results[1])
    erase_unread(graph, [n for n in graph.body if n in inside])


def _stack(graph: Graph, parts: Parts) -> dict[Value, Value]:
    """The weights of the first block that others do not share, each with a new param of all blocks' weights."""
    found: dict[Value, Value] = {}
    for place in zip(*(b.params for b in parts.repeats.blocks), strict=True):
        names = [graph.inputs[v].name for v in place]
        if missing := [n for n in names if n not in graph.weights]:
            raise UnsupportedError(f"weight {missing[0]} is not at hand")
        found[place[0]] = graph.add_param(f"{names[0]}.stacked", torch.stack([graph.weights[n] for n in names]))
    return found


def _axis(value: Value, state: Value) -> int | None:
    """The axis of the state whose size a number is; the loop then needs nobody to tell it."""
    if not isinstance(value.type, ScalarType) or value.type.expr is None:
        return None
    expr: Dim = value.type.expr
    return next((axis for axis, dim in enumerate(state.tensor.shape) if dim == expr), None)
