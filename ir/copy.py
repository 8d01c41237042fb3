"""Copies of a graph, for candidates and for the way back. Nodes are new, weights are shared."""

from __future__ import annotations

from ir.core import Arg, Block, Graph, Node, Value, map_values


def copy_graph(graph: Graph) -> Graph:
    """An equal graph that can be changed apart; no tensor is copied."""
    made = Graph(graph.name, graph.dims)
    made.typer = graph.typer  # what was derived stays derived
    made.initial = dict(graph.initial)
    table: dict[Value, Value] = {}
    for value, spec in graph.inputs.items():
        table[value] = made.add_input(spec.kind, spec.name, value.type, value.name)
        if spec.kind == "param" and spec.name in graph.weights:
            made.weights.add(spec.name, graph.weights[spec.name])
    made.outputs = graph.outputs
    _copy_block(graph.body, made.body, table)
    made.version = graph.version
    return made


def restore(graph: Graph, kept: Graph) -> None:
    """Make ``graph`` what ``kept`` is; ``kept`` must not be used after."""
    graph.dims, graph.body, graph.inputs = kept.dims, kept.body, kept.inputs
    graph.outputs, graph.weights, graph.initial = kept.outputs, kept.weights, kept.initial
    graph.taken = kept.taken
    graph.version += 1


def _copy_block(source: Block, target: Block, table: dict[Value, Value]) -> None:
    def read(value: Value) -> Arg:
        return table[value]

    for node in source:
        regions = []
        for region in node.regions:
            inner = [Value(v.type, v.name) for v in region.args]
            table.update(zip(region.args, inner, strict=True))
            block = Block(inner)
            _copy_block(region, block, table)
            regions.append(block)
        made = Node(
            node.op,
            tuple(map_values(a, read) for a in node.args),
            {k: map_values(a, read) for k, a in node.kwargs.items()},
            node.origin,
            tuple(regions),
            node.hints,
        )
        made.results = tuple(Value(v.type, v.name, made) for v in node.results)
        table.update(zip(node.results, made.results, strict=True))
        for value in made.operands:
            value.uses[made] = None
        target.link(made, None)
