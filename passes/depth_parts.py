"""What the modes of ``depth`` share: the blocks of a graph with what lies around them, and copies of nodes.

A graph with blocks is ``before -> block ... block -> tail``: the tail is whatever the last state reaches. All else is
``before``, and can be computed before the first block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ir import RETURN, Arg, Block, Graph, Node, Output, Value, map_values
from ir.dims import Dim
from ir.repeats import Repeats, find_repeats
from ir.rows import retyped


@dataclass(frozen=True)
class Parts:
    """A graph taken apart.

    Attributes:
        repeats: its blocks.
        tail: nodes that the last state reaches, in order.
        answers: places among the outputs of what the tail makes, each with its value.
    """

    repeats: Repeats
    tail: tuple[Node, ...]
    answers: Mapping[int, Value]

    @property
    def states(self) -> tuple[Value, ...]:
        """The state at each depth, 0 to all blocks."""
        return self.repeats.states

    @property
    def depth(self) -> int:
        """How many blocks there are."""
        return len(self.repeats.blocks)


def take_apart(graph: Graph) -> Parts | str:
    """The parts of a graph, or a sentence why it has no blocks that could be left out."""
    repeats = find_repeats(graph)
    if isinstance(repeats, str):
        return repeats
    reached = {repeats.states[-1]}
    tail: list[Node] = []
    for node in graph.body:
        if node.op is not RETURN and any(v in reached for v in node.operands):
            tail.append(node)
            reached.update(node.results)
    inside = {n for b in repeats.blocks for n in b.nodes}
    for state, block in zip(repeats.states[1:-1], repeats.blocks[1:], strict=True):
        others = [u for u in state.uses if u not in block.nodes and u.results]
        if others or any(u.op is RETURN for u in state.uses):
            return f"%{state.name}, the state between two blocks, is read elsewhere too"
    returned = graph.body.returned.args
    answers = {i: v for i, v in enumerate(returned) if isinstance(v, Value) and v in reached}
    kinds = {graph.outputs[i].kind for i in answers}
    if kinds - {"output"}:
        return f"a {sorted(kinds - {'output'})[0]} is made of the last block"
    if not answers:
        return "no output is made of the last block"
    if any(n in inside for n in tail):
        return "the last state is read by the blocks before it"
    return Parts(repeats, tuple(tail), answers)


def hoist(graph: Graph, parts: Parts) -> None:
    """Move everything that neither a block nor the tail computes before the first block."""
    inside = {n for b in parts.repeats.blocks for n in b.nodes} | set(parts.tail)
    first = next(node for node in graph.body if node in inside)
    seen = False
    for node in graph.body:
        seen = seen or node is first
        looks = any(v.producer in inside for v in node.operands)  # an assert about a state
        if seen and node not in inside and node.op is not RETURN and not looks:
            graph.body.unlink(node)
            graph.body.link(node, first)
            graph.version += 1


def copy_nodes(
    graph: Graph,
    nodes: Iterable[Node],
    table: dict[Value, Value],
    block: Block,
    before: Node | None = None,
    sizes: Mapping[object, Dim] | None = None,
) -> None:
    """Copies of nodes, reading what ``table`` gives for a value; their results are added to it.

    Args:
        graph: that they belong to.
        nodes: in order, without regions.
        table: value to the value that stands for it; what is not in it stands for itself.
        block: where the copies go.
        before: the node before which they go; the end of ``block`` without.
        sizes: symbols to replace in the types.
    """  # fmt: skip

    def read(value: Value) -> Arg:
        return table.get(value, value)

    for node in nodes:
        types = [retyped(v.type, dict(sizes or {})) for v in node.results]
        made = graph.insert(
            node.op, *(map_values(a, read) for a in node.args), before=before, block=block, origin=node.origin,
            types=types, kwargs={k: map_values(a, read) for k, a in node.kwargs.items()},
        )  # fmt: skip
        for old, new in zip(node.results, made.results, strict=True):
            new.name = old.name
            table[old] = new


def outputs_with(graph: Graph, values: Mapping[int, Value], more: Iterable[tuple[Output, Value]]) -> None:
    """Return other values at some places, and further ones at the end."""
    returned = graph.body.returned
    added = list(more)
    args = tuple(values.get(i, a) for i, a in enumerate(returned.args)) + tuple(v for _, v in added)
    graph.outputs = (*graph.outputs, *(o for o, _ in added))
    graph.set_arguments(returned, args)


def erase_unread(graph: Graph, nodes: Iterable[Node]) -> None:
    """Erase nodes, given in order, that nothing reads any more, asserts among them; and weights that nothing reads."""
    for node in reversed(list(nodes)):
        if node.block is not None and not any(v.uses for v in node.results):
            graph.erase(node)
    for _, value in list(graph.arguments("param")):
        if not value.uses:
            graph.drop_argument(value)
