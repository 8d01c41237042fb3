"""Drives rules over a graph until none applies, and keeps account of every match."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ir import RETURN, Arg, Graph, IRError, Node, Value
from passes.base import Remark

Rule = Callable[[Graph, Node], "Remark | None"]
"""Looks at one node: rewrites it and says so, declines and says why, or returns None: no match."""

_MAX_ROUNDS = 50


def rewrite(graph: Graph, rules: Sequence[Rule]) -> list[Remark]:
    """Apply rules to every node, in order, round after round, until a round changes nothing.

    Raises:
        IRError: the rules undo each other.
    """
    applied: list[Remark] = []
    for _ in range(_MAX_ROUNDS):
        declined: list[Remark] = []
        version = graph.version
        for node in list(graph.walk()):
            for rule in rules:
                if node.block is None or node.op is RETURN:
                    break
                said = rule(graph, node)
                if said is not None:
                    (applied if said.applied else declined).append(said)
        if graph.version == version:
            return applied + declined
    raise IRError(f"rewrites do not end after {_MAX_ROUNDS} rounds; last: {applied[-1] if applied else '?'}")


def forward(graph: Graph, node: Node, to: Arg) -> None:
    """Let the readers of a node's only result read ``to`` instead, and erase the node."""
    graph.replace(node.result, to)
    graph.erase(node)


def producer(arg: Arg, *names: str) -> Node | None:
    """The node that made a value, if it is one of these operators."""
    if isinstance(arg, Value) and arg.producer is not None and arg.producer.op.name in names:
        return arg.producer
    return None


def only_user(value: Value) -> bool:
    """Whether one node reads the value."""
    return len(value.uses) == 1


def ints(arg: Arg) -> tuple[int, ...] | None:
    """A tuple of literal ints, or None when it holds anything else."""
    if isinstance(arg, tuple) and all(isinstance(a, int) and not isinstance(a, bool) for a in arg):
        return tuple(a for a in arg if isinstance(a, int))
    return None


def number(arg: Arg) -> float | None:
    """A literal number, or None."""
    return float(arg) if isinstance(arg, (int, float)) and not isinstance(arg, bool) else None
