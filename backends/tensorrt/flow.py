"""``cond`` becomes an If whose branches read through its inputs, ``while`` becomes a Loop.

TensorRT (1.7.1) builds a conditional within a conditional only when all shapes are fixed. With dynamic shapes a nest
becomes a chain: one If per stretch of work, guarded by all the conditions around it, whose other side gives zeros of
the right shape that nothing reads. Each stretch still runs only when its turn comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from backends.arguments import SCALARS, Refused
from backends.onnx_emit.emit import Writer
from backends.onnx_emit.flow import bind, operands_of
from backends.tensorrt.layers import reshape
from backends.tensorrt.network import NetworkScope
from ir import COND, RETURN, Arg, Block, Node, ScalarType, TensorType, Value


def region(s: NetworkScope, node: Node, writer: Writer) -> list[str]:
    """Emit a node that holds regions."""
    if node.op is not COND:
        return _loop(s, node, writer)
    nested = any(inner.op is COND for block in node.regions for inner in block)
    if nested and s.emission.graph.dims:
        return _chain(s, node, writer, "")
    return _conditional(s, node, writer)


def _truth(s: NetworkScope, name: str) -> Any:
    tensor = s.read(name)
    return tensor if not len(tensor.shape) else reshape(s, tensor, [])


def _told(node: Node) -> str:
    return f"{node.op.name} at {node.origin}" if str(node.origin) else node.op.name


def _gate(s: NetworkScope, condition: Any, node: Node | None) -> tuple[Any, NetworkScope, NetworkScope]:
    """A conditional and the scopes of its sides."""
    gate = s.network.definition.add_if_conditional()
    gate.name = s.emission.fresh("if")
    if node is not None:
        s.network.flows[gate.name] = (_told(node), "if")
    gate.set_condition(condition)
    taken, other = (NetworkScope(s.network, s, "branch", gate) for _ in range(2))
    other.share_routes(taken)
    return gate, taken, other


def _conditional(s: NetworkScope, node: Node, writer: Writer) -> list[str]:
    predicate, operands = node.args
    given = operands_of(s, operands)
    gate, *scopes = _gate(s, _truth(s, s.tensor(predicate, torch.bool)), node)
    sides = []
    for inner, block in zip(scopes, node.regions, strict=True):
        bind(inner, block, given)
        sides.append([inner.read(name) for name in writer.block(inner, block)])
    return [s.bind(s.layer(gate.add_output(a, b)), "If") for a, b in zip(*sides, strict=True)]


# --- nests with dynamic shapes ---------------------------------------------------------------------


def _chain(s: NetworkScope, node: Node, writer: Writer, guard: str) -> list[str]:
    """Both sides one after the other, each under its guard; then the results of the one that ran."""
    predicate, operands = node.args
    given = operands_of(s, operands)
    taken = s.bind(_truth(s, s.tensor(predicate, torch.bool)))
    sides = []
    for block, condition in zip(node.regions, (taken, s.op("Not", taken)), strict=True):
        bind(s, block, given)
        sides.append(_stretches(s, node, block, writer, s.op("And", guard, condition) if guard else condition))
    gate, first, second = _gate(s, s.read(taken), None)
    pairs = zip(*sides, strict=True)
    return [s.bind(s.layer(gate.add_output(first.read(a), second.read(b))), "If") for a, b in pairs]


def _stretches(s: NetworkScope, cond: Node, block: Block, writer: Writer, guard: str) -> list[str]:
    """A block under a guard: plain nodes together in one If, nested conditionals as chains of their own."""
    plain: list[Node] = []
    for node in block:
        if node.op is COND or node.op is RETURN:
            if plain:
                _stretch(s, cond, plain, writer, guard)
                plain = []
            if node.op is COND:
                for value, name in zip(node.results, _chain(s, node, writer, guard), strict=True):
                    s[value] = name
        else:
            plain.append(node)
    return [writer.returned(s, a) for a in block.returned.args]


def _stretch(s: NetworkScope, cond: Node, nodes: Sequence[Node], writer: Writer, guard: str) -> None:
    gate, work, idle = _gate(s, s.read(guard), cond)
    writer.nodes(work, nodes)
    own = set(nodes)
    for node in nodes:
        for value in node.results:
            if all(user in own for user in value.uses):
                continue
            name = work[value]
            if name in work.tensors:
                s[value] = s.bind(s.layer(gate.add_output(work.read(name), idle.read(_nothing(idle, value)))), "If")


def _nothing(s: NetworkScope, value: Value) -> str:
    """Zeros of the shape that a value would have."""
    if isinstance(value.type, ScalarType):
        return s.const([0], SCALARS[value.type.kind])
    if not isinstance(value.type, TensorType):
        raise Refused("hands on a result that is absent")
    zero = s.const(0, value.type.dtype)
    return s.op("Expand", zero, s.join([s.dim(d) for d in value.type.shape])) if value.type.shape else zero


# --- loops -----------------------------------------------------------------------------------------


def _loop(s: NetworkScope, node: Node, writer: Writer) -> list[str]:
    """The test runs once before, and again at the end of each turn, on what the turn made."""
    carried, closed = (operands_of(s, a) for a in node.args)
    test, body = node.regions
    kept = _unchanged(body, len(carried))
    bind(s, test, [*carried, *closed])
    start = _truth(s, writer.block(s, test)[0])
    turns = s.network.definition.add_loop()
    turns.name = s.emission.fresh("loop")
    s.network.flows[turns.name] = (_told(node), "loop")
    inner = NetworkScope(s.network, s, "loop", turns)
    memory = {i: turns.add_recurrence(s.read(name)) for i, name in enumerate(carried) if i not in kept}
    going = turns.add_recurrence(start)
    turns.add_trip_limit(going.get_output(0), s.trt.TripLimit.WHILE)
    state = [inner.bind(s.check(memory[i].get_output(0))) if i in memory else n for i, n in enumerate(carried)]
    bind(inner, body, [*state, *closed])
    after = writer.block(inner, body)
    bind(inner, test, [*after, *closed])
    again = _truth(inner, writer.block(inner, test)[0])
    going.set_input(1, s.check(again))
    for index, recurrence in memory.items():
        recurrence.set_input(1, inner.read(after[index]))
    last = s.trt.LoopOutput.LAST_VALUE
    return [
        s.bind(s.layer(turns.add_loop_output(memory[i].get_output(0), last)), "Loop") if i in memory else n
        for i, n in enumerate(carried)
    ]


def _unchanged(body: Block, count: int) -> set[int]:
    """Places of what a body hands on as it came: it is read from outside instead of carried."""
    returned: Sequence[Arg] = body.returned.args
    return {i for i in range(count) if returned[i] is body.args[i]}
