"""Copies of a graph in which somebody else decides: branches and loops by extra inputs, or none left at all.

``forced`` keeps every branch and loop, but its predicate is an input and a loop runs as many turns as an input says.
``straight`` has none: of each branch the chosen side stands inlined, a loop's body as often as it is to run. Both
compute the same for the same choices; only the second cannot compute what was not chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ir import COND, RETURN, WHILE, Arg, Block, Graph, Node, TensorType, Value, map_values, op
from passes.drop_dead_nodes import DropDeadNodes

TURNS = 4
"""Of a loop that runs, when it is measured."""
_FLAG, _COUNT = TensorType(torch.bool, ()), TensorType(torch.int64, ())
_INPUT = "penstock_forced_"


@dataclass(frozen=True, slots=True)
class Region:
    """A branch or loop, and how it is reached.

    Attributes:
        node: ``cond`` or ``while``.
        heavy, light: the choice with more, and with less to do: side 0 or 1 of a branch, turns of a loop.
        around: choices of the branches and loops around it that lead there.
    """

    node: Node
    heavy: int
    light: int
    around: Mapping[Node, int]


def regions_of(graph: Graph) -> tuple[Region, ...]:
    """Every branch and loop, outer before inner."""
    return tuple(_regions(graph.body, {}))


def _regions(block: Block, around: Mapping[Node, int]) -> Iterator[Region]:
    for node in block:
        if node.op is COND:
            heavy = 0 if _weight(node.regions[0]) > _weight(node.regions[1]) else 1
            yield Region(node, heavy, 1 - heavy, around)
            for side, region in enumerate(node.regions):
                yield from _regions(region, {**around, node: side})
        elif node.op is WHILE:
            yield Region(node, TURNS, 0, around)
            yield from _regions(node.regions[1], {**around, node: TURNS})


def _weight(block: Block) -> int:
    """Nodes, those of loops several times, of branches those of the longer side."""
    total = 0
    for node in block:
        inner = [_weight(region) for region in node.regions]
        total += TURNS * sum(inner) if node.op is WHILE else max(inner, default=1)
    return total


def choices(regions: Sequence[Region], measured: Region, heavy: bool) -> dict[Node, int]:
    """What every branch and loop does while one is measured: what lies within it is heavy, what is beside it light."""
    made = {}
    for region in regions:
        made[region.node] = region.heavy if measured.node in region.around else region.light
    return {**made, **measured.around, measured.node: measured.heavy if heavy else measured.light}


def inputs_of(regions: Sequence[Region], chosen: Mapping[Node, int]) -> dict[str, torch.Tensor]:
    """The extra inputs of the forced graph for some choices."""
    return {
        f"{_INPUT}{index}": torch.tensor(chosen[r.node] == 0) if r.node.op is COND else torch.tensor(chosen[r.node])
        for index, r in enumerate(regions)
    }


def forced(graph: Graph, regions: Sequence[Region]) -> Graph:
    """The graph with an extra input per branch (true takes side 0) and per loop (its turns)."""
    made, table = _begin(graph)
    given = {
        r.node: made.add_input("input", f"{_INPUT}{index}", _FLAG if r.node.op is COND else _COUNT)
        for index, r in enumerate(regions)
    }
    return _end(made, graph, _forced_block(made, graph.body, made.body, table, given))


def straight(graph: Graph, chosen: Mapping[Node, int]) -> Graph:
    """The graph with every branch and loop replaced by what was chosen."""
    made, table = _begin(graph)
    return _end(made, graph, _straight_block(made, graph.body, table, chosen))


def _begin(graph: Graph) -> tuple[Graph, dict[Value, Value]]:
    made = Graph(graph.name, graph.dims)
    made.typer = graph.typer  # what was derived stays derived
    table: dict[Value, Value] = {}
    for value, spec in graph.inputs.items():
        table[value] = made.add_input(spec.kind, spec.name, value.type, value.name)
        if spec.kind == "param":
            made.weights.add(spec.name, graph.weights[spec.name])
    return made, table


def _end(made: Graph, graph: Graph, results: Sequence[Arg]) -> Graph:
    made.returns(*results, outputs=graph.outputs)
    DropDeadNodes().run(made)  # what only the predicates needed
    return made


def _plain(made: Graph, node: Node, target: Block, table: dict[Value, Value]) -> None:
    args, kwargs = tuple(_read(a, table) for a in node.args), {k: _read(a, table) for k, a in node.kwargs.items()}
    types = [v.type for v in node.results]
    copied = made.insert(node.op, *args, block=target, origin=node.origin, types=types, hints=node.hints, kwargs=kwargs)
    table.update(zip(node.results, copied.results, strict=True))


def _read(arg: Arg, table: Mapping[Value, Value]) -> Arg:
    return map_values(arg, lambda value: table[value])


def _many(arg: Arg, table: Mapping[Value, Value]) -> tuple[Value, ...]:
    assert isinstance(arg, tuple)
    return tuple(table[v] for v in arg if isinstance(v, Value))


def _straight_block(
    made: Graph, source: Block, table: dict[Value, Value], chosen: Mapping[Node, int]
) -> tuple[Arg, ...]:
    for node in source:
        if node.op is RETURN:
            return tuple(_read(a, table) for a in node.args)
        if node.op is COND:
            region = node.regions[chosen[node]]
            given: tuple[Arg, ...] = _many(node.args[1], table)
        elif node.op is WHILE:
            region = node.regions[1]
            given = _many(node.args[0], table)
        else:
            _plain(made, node, made.body, table)
            continue
        closed = _many(node.args[1], table) if node.op is WHILE else ()
        for _ in range(chosen[node] if node.op is WHILE else 1):
            values = [v for v in (*given, *closed) if isinstance(v, Value)]
            given = _straight_block(made, region, dict(zip(region.args, values, strict=True)), chosen)
        table.update(zip(node.results, (v for v in given if isinstance(v, Value)), strict=True))
    raise AssertionError("verified blocks end with return")


def _forced_block(
    made: Graph, source: Block, target: Block, table: dict[Value, Value], given: Mapping[Node, Value]
) -> tuple[Arg, ...]:
    for node in source:
        if node.op is RETURN:
            return tuple(_read(a, table) for a in node.args)
        if node.op is COND:
            copied = _forced_cond(made, node, target, table, given)
        elif node.op is WHILE:
            copied = _forced_while(made, node, target, table, given)
        else:
            _plain(made, node, target, table)
            continue
        table.update(zip(node.results, copied, strict=True))
    raise AssertionError("verified blocks end with return")


def _within(node: Node, given: Mapping[Node, Value]) -> dict[Node, Value]:
    """Those choices that branches and loops inside of a node need; its regions are closed, so they are operands."""
    inside = {inner for region in node.regions for inner in _walk(region)}
    return {n: v for n, v in given.items() if n in inside}


def _walk(block: Block) -> Iterator[Node]:
    for node in block:
        yield node
        for region in node.regions:
            yield from _walk(region)


def _forced_cond(
    made: Graph, node: Node, target: Block, table: dict[Value, Value], given: Mapping[Node, Value]
) -> tuple[Value, ...]:
    needed = _within(node, given)
    regions = []
    for region in node.regions:
        args = [Value(v.type, v.name) for v in (*region.args, *needed.values())]
        block = Block(args)
        count = len(region.args)
        inner = dict(zip(region.args, args[:count], strict=True))
        results = _forced_block(made, region, block, inner, dict(zip(needed, args[count:], strict=True)))
        made.returns(*results, block=block)
        regions.append(block)
    operands = (*_many(node.args[1], table), *needed.values())
    types = [v.type for v in node.results]
    copied = made.insert(
        COND, given[node], operands, block=target, origin=node.origin, regions=tuple(regions), types=types
    )
    return copied.results


def _forced_while(
    made: Graph, node: Node, target: Block, table: dict[Value, Value], given: Mapping[Node, Value]
) -> tuple[Value, ...]:
    needed = _within(node, given)
    start = _many(node.args[0], table)
    zero = made.insert(
        op("aten.scalar_tensor.default"), 0, block=target, kwargs={"dtype": torch.int64}, types=(_COUNT,)
    ).result
    carried, closed = (*start, zero), (*_many(node.args[1], table), *needed.values(), given[node])
    test, body = (Block([Value(v.type, v.name) for v in (*carried, *closed)]) for _ in range(2))
    turn, limit = test.args[len(start)], test.args[-1]
    made.returns(made.insert(op("aten.lt.Tensor"), turn, limit, block=test, types=(_FLAG,)).result, block=test)
    source = node.regions[1]
    mine = [*body.args[: len(start)], *body.args[len(carried) : len(body.args) - 1 - len(needed)]]
    forces = body.args[len(body.args) - 1 - len(needed) : -1]
    results = _forced_block(
        made, source, body, dict(zip(source.args, mine, strict=True)), dict(zip(needed, forces, strict=True))
    )
    after = made.insert(op("aten.add.Tensor"), body.args[len(start)], 1, block=body, types=(_COUNT,)).result
    made.returns(*results, after, block=body)
    types = [*(v.type for v in node.results), _COUNT]
    copied = made.insert(WHILE, carried, closed, block=target, origin=node.origin, regions=(test, body), types=types)
    return copied.results[: len(start)]
