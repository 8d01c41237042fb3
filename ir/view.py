"""A networkx picture of a graph, for analyses that are not ours to write again."""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx

from ir.core import Block, Graph, Node
from ir.ops import RETURN


def network(graph: Graph | Block) -> nx.DiGraph[Node]:
    """Nodes of one block; an edge for each value that one makes and another reads."""
    block = graph.body if isinstance(graph, Graph) else graph
    picture: nx.DiGraph[Node] = nx.DiGraph()
    for node in block:
        picture.add_node(node)
        for value in node.operands:
            if value.producer is not None:
                picture.add_edge(value.producer, node)
    return picture


def critical_path(graph: Graph | Block, seconds: Callable[[Node], float]) -> list[Node]:
    """The chain of nodes with the largest total time: what no parallelism can shorten."""
    picture = network(graph)
    best: dict[Node, tuple[float, Node | None]] = {}
    for node in nx.topological_sort(picture):
        before = max(picture.predecessors(node), key=lambda p: best[p][0], default=None)
        best[node] = (seconds(node) + (best[before][0] if before is not None else 0.0), before)
    step: Node | None = max(best, key=lambda n: best[n][0], default=None)
    path = []
    while step is not None:
        path.append(step)
        step = best[step][1]
    return path[::-1]


def dominators(graph: Graph | Block) -> dict[Node, Node]:
    """For each node the nearest one through which every way to the return leads (post-dominator)."""
    block = graph.body if isinstance(graph, Graph) else graph
    picture = network(block)
    target = block.returned
    reaching = nx.ancestors(picture, target) | {target}
    found = nx.immediate_dominators(picture.subgraph(reaching).reverse(), target)
    return {node: found[node] for node in block if node in found and node.op is not RETURN}


def cut(graph: Graph | Block, first: set[Node]) -> list[tuple[Node, Node]]:
    """Edges from a set of nodes to the rest: what a partition must carry across."""
    return [(a, b) for a, b in network(graph).edges if a in first and b not in first]  # in execution order
