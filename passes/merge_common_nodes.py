"""y = f(x); z = f(x)  ->  y = f(x); z = y   (common subexpression elimination)

Sound: both are pure, deterministic, of the same operator with the same arguments.
Profitable: the second is never computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ir import Arg, Block, Fact, Graph, Node, Value
from passes.base import Pass, Remark, Samples, remark


@dataclass(frozen=True)
class MergeCommonNodes(Pass):
    """Computes equal things once."""

    name: ClassVar[str] = "merge-common-nodes"
    summary: ClassVar[str] = "y = f(x); z = f(x) -> z = y"
    breaks: ClassVar[frozenset[Fact]] = frozenset()

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        return [said for block in list(graph.blocks()) for said in self._block(graph, block)]

    def _block(self, graph: Graph, block: Block) -> list[Remark]:
        first: dict[object, Node] = {}
        said = []
        for node in block:
            if not node.pure or not node.results or node.regions:
                continue
            twin = first.setdefault(_key(node), node)
            if twin is not node and [v.type for v in twin.results] == [v.type for v in node.results]:
                for old, new in zip(node.results, twin.results, strict=True):
                    graph.replace(old, new)
                said.append(remark(node, True, f"computed before{_at(twin)}"))
                graph.erase(node)
        return said


def _at(twin: Node) -> str:
    return f" at {twin.origin}" if str(twin.origin) else ""


def _key(node: Node) -> object:
    return (node.op, _part(node.args), tuple((k, _part(v)) for k, v in sorted(node.kwargs.items())))


def _part(arg: Arg) -> object:
    if isinstance(arg, Value):
        return id(arg)
    if isinstance(arg, tuple):
        return tuple(_part(a) for a in arg)
    return (type(arg), repr(arg))  # 1, 1.0 and True are different arguments
