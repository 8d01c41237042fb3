"""Which form of ``rows`` an engine gets: written out before a backend sees the graph, with the choice on record."""

from __future__ import annotations

from dataclasses import dataclass

from backends.base import Backend, FlowProof, Unsupported
from ir import ROWS, Graph, Node
from ir.rows import lowered
from ir.rowwise import mixing

_DETAIL = {
    "compacted": "live rows are gathered, so the region runs on as many rows as are live",
    "masked": "every row is computed and the live ones are kept: nothing is saved",
}


@dataclass(frozen=True)
class Prepared:
    """A graph that an engine can be asked for.

    Attributes:
        graph: without ``rows``, unless they are to be bucketed; the graph itself where it has none.
        flow: what became of each ``rows``. Nothing was measured yet.
        refused: each ``rows`` that this engine cannot have.
    """

    graph: Graph
    flow: tuple[FlowProof, ...] = ()
    refused: tuple[Unsupported, ...] = ()


def prepared(graph: Graph, backend: Backend, mode: str = "") -> Prepared:
    """The graph as a backend takes it, see ``Backend.rows``; in another ``mode`` where one is given."""
    nodes = [node for node in graph.walk() if node.op is ROWS]
    mode = mode or backend.rows
    if not nodes or mode == "bucketed":  # then the segments tell what became of them
        return Prepared(graph)
    refused = []
    if mode == "masked":
        refused = [Unsupported("rows", str(n.origin), f"cannot be masked: {why}") for n in nodes if (why := mixing(n))]
    if refused:
        return Prepared(graph, refused=tuple(refused))
    return Prepared(lowered(graph, mode), tuple(_proof(node, mode) for node in nodes))


def _proof(node: Node, mode: str) -> FlowProof:
    at = f" at {node.origin}" if str(node.origin) else ""
    return FlowProof(f"rows{at}", mode, "none", _DETAIL[mode])
