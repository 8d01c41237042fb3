"""``cond`` becomes an If whose branches read through its inputs, ``while`` becomes a Loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from backends.onnx_emit.dtypes import SCALARS, Refused
from backends.onnx_emit.flow import bind
from backends.onnx_emit.scope import Scope
from backends.tensorrt.layers import reshape
from backends.tensorrt.network import NetworkScope
from ir import COND, Arg, Block, Node, Value

EmitBlock = Callable[[Scope, Block], list[str]]


def region(s: NetworkScope, node: Node, emit: EmitBlock) -> list[str]:
    """Emit a node that holds regions."""
    return (_conditional if node.op is COND else _loop)(s, node, emit)


def _given(s: NetworkScope, args: Arg) -> list[str]:
    found = []
    for arg in args if isinstance(args, tuple) else ():
        if isinstance(arg, Value):
            found.append(s[arg])
        elif isinstance(arg, (bool, int, float)):
            kind = "bool" if isinstance(arg, bool) else "int" if isinstance(arg, int) else "float"
            found.append(s.const([arg], SCALARS[kind]))
        else:
            raise Refused(f"hands {arg!r} to a region")
    return found


def _truth(s: NetworkScope, name: str) -> Any:
    tensor = s.read(name)
    return tensor if not len(tensor.shape) else reshape(s, tensor, [])


def _conditional(s: NetworkScope, node: Node, emit: EmitBlock) -> list[str]:
    predicate, operands = node.args
    condition = _truth(s, s.tensor(predicate, torch.bool))
    given = _given(s, operands)
    gate = s.network.definition.add_if_conditional()
    gate.name = s.emission.fresh("if")
    gate.set_condition(condition)
    sides: list[list[Any]] = []
    first: NetworkScope | None = None
    for block in node.regions:
        inner = NetworkScope(s.network, s, "branch", gate)
        if first is None:
            first = inner
        else:
            inner.share_routes(first)
        bind(inner, block, given)
        sides.append([inner.read(name) for name in emit(inner, block)])
    return [s.bind(s.layer(gate.add_output(a, b)), "If") for a, b in zip(*sides, strict=True)]


def _loop(s: NetworkScope, node: Node, emit: EmitBlock) -> list[str]:
    """The test runs once before, and again at the end of each turn, on what the turn made."""
    carried, closed = (_given(s, a) for a in node.args)
    test, body = node.regions
    kept = _unchanged(body, len(carried))
    bind(s, test, [*carried, *closed])
    start = _truth(s, emit(s, test)[0])
    turns = s.network.definition.add_loop()
    turns.name = s.emission.fresh("loop")
    inner = NetworkScope(s.network, s, "loop")
    memory = {i: turns.add_recurrence(s.read(name)) for i, name in enumerate(carried) if i not in kept}
    going = turns.add_recurrence(start)
    turns.add_trip_limit(going.get_output(0), s.trt.TripLimit.WHILE)
    state = [inner.bind(s.check(memory[i].get_output(0))) if i in memory else n for i, n in enumerate(carried)]
    bind(inner, body, [*state, *closed])
    after = emit(inner, body)
    bind(inner, test, [*after, *closed])
    again = _truth(inner, emit(inner, test)[0])
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
