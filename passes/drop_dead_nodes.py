"""y = f(x), y unused  ->  nothing; weights that nothing reads go with it.

Sound: a pure node has no effect but its results. Asserts and state updates stay.
Profitable: less work, smaller artifact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ir import RETURN, Fact, Graph, Node
from passes.base import Pass, Remark, Samples, remark


@dataclass(frozen=True)
class DropDeadNodes(Pass):
    """Removes what cannot reach an output."""

    name: ClassVar[str] = "drop-dead-nodes"
    summary: ClassVar[str] = "a pure node that nothing reads, and its weights -> nothing"
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_DEAD_NODES})

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        said = []
        for block in list(graph.blocks()):
            for node in reversed(block):
                if node.op is not RETURN and node.pure and not any(v.uses for v in node.results):
                    said.append(remark(node, True, "nothing reads it"))
                    graph.erase(node)
        unread = [(name, value) for name, value in graph.arguments("param") if not value.uses]
        for name, value in unread:
            graph.drop_argument(value)
            said.append(Remark(f"weight {name}", True, "nothing reads it"))
        return said


def drop_chain(graph: Graph, *nodes: Node) -> None:
    """Erase what a rewrite left without readers: these nodes, and whatever fed only them."""
    left = list(nodes)
    while left:
        node = left.pop()
        if node.block is None or node.op is RETURN or not node.pure or any(v.uses for v in node.results):
            left.extend(u for v in node.results for u in v.uses if u.pure and not any(r.uses for r in u.results))
            continue
        feeders = [v.producer for v in node.operands if v.producer is not None]
        graph.erase(node)
        left.extend(feeders)
