"""The reference meaning of a graph: torch itself, node by node. Every engine is compared with this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ir.core import Arg, Block, Graph, Node, Value
from ir.errors import IRError
from ir.ops import COND, RETURN, ROWS, WHILE

Watcher = Callable[[Node, Sequence[Any], Sequence[Any]], None]
"""Sees a node, the arguments it was given and the results it gave."""


def interpret(
    graph: Graph, inputs: Mapping[str, torch.Tensor], watch: Watcher | None = None
) -> dict[str, torch.Tensor]:
    """Run a graph.

    Args:
        graph: the graph; its weights must hold a tensor for each param.
        inputs: a tensor per user input and per state, by name; a state left out has its initial content.
        watch: called after each node (observers, traces).

    Returns:
        A tensor per output; a state comes back under ``state:NAME``, a trace under ``trace:NAME``.
    """
    values: list[Any] = []
    for spec in graph.inputs.values():
        source: Mapping[str, torch.Tensor] = graph.weights if spec.kind == "param" else inputs
        if spec.kind == "state" and spec.name not in inputs:
            source = graph.initial
        if spec.name not in source:
            raise IRError(f"no tensor for {spec.kind} {spec.name!r}")
        values.append(source[spec.name])
    with torch.no_grad():
        results = run_block(graph.body, values, watch)
    return {o.key: r for o, r in zip(graph.outputs, results, strict=True)}


def run_block(block: Block, inputs: Sequence[Any], watch: Watcher | None = None) -> list[Any]:
    """Run one block; a value is forgotten after its last use, as an engine would."""
    env: dict[Value, Any] = dict(zip(block.args, inputs, strict=True))
    kept = set(block.args)
    left: dict[Value, int] = {}
    for node in block:
        if node.op is RETURN:
            return [_read(a, env) for a in node.args]
        args = [_read(a, env) for a in node.args]
        results = run_node(node, args, {k: _read(a, env) for k, a in node.kwargs.items()}, watch)
        for value, result in zip(node.results, results, strict=True):
            if value.uses:
                env[value] = result
                left[value] = len(value.uses)
        if watch is not None:
            watch(node, args, results)
        for value in dict.fromkeys(node.operands):
            if value not in kept:
                left[value] -= 1
                if not left[value]:
                    del env[value]
    raise IRError("the block does not end with return")


def run_node(node: Node, args: list[Any], kwargs: dict[str, Any], watch: Watcher | None = None) -> list[Any]:
    """Results of one node for given arguments."""
    if node.op is COND:
        taken = node.regions[0] if bool(args[0]) else node.regions[1]
        return run_block(taken, args[1], watch)
    if node.op is WHILE:
        carried, closed = list(args[0]), list(args[1])
        test, body = node.regions
        while bool(run_block(test, [*carried, *closed], watch)[0]):
            carried = run_block(body, [*carried, *closed], watch)
        return carried
    if node.op is ROWS:
        return _run_rows(node, args, watch)
    assert node.op.target is not None
    result = node.op.target(*args, **kwargs)
    if not node.results:
        return []
    if len(node.results) == 1 and not isinstance(result, (tuple, list)):
        return [result]
    return list(result)


def _run_rows(node: Node, args: list[Any], watch: Watcher | None) -> list[Any]:
    """On the live rows only, so that a region that mixes rows gives what no masked run gives."""
    live, carried, beside, closed = args
    index = live.nonzero().squeeze(1)
    if not len(index):  # nothing to run: observers, and ``-1`` in a reshape, would not know what to make of no rows
        return list(carried)
    picked = [x.index_select(0, index) for x in (*carried, *beside)]
    changed = run_block(node.regions[0], [*picked, *closed], watch)
    return [x.index_copy(0, index, new) for x, new in zip(carried, changed, strict=True)]


def _read(arg: Arg, env: Mapping[Value, Any]) -> Any:
    if isinstance(arg, Value):
        return env[arg]
    if isinstance(arg, tuple):
        return [_read(a, env) for a in arg]
    return arg
