"""Fewer blocks, the same for every input: which ones stay, and the graph without the others."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from ir import Graph, Node, Value, interpret
from ir.copy import copy_graph
from ir.core import Output
from ir.errors import UsageError
from passes.base import Samples
from passes.depth_parts import Parts, erase_unread, take_apart

ORDERS = ("balanced", "influence")


def balanced(depth: int, speedup: float) -> tuple[int, ...]:
    """Blocks to keep, from 0 (Unified Layer Skipping, 2404.06954): evenly spread, the first and the last among them.

    Where the paper's rule cannot spread them (few blocks, a step of 1 that keeps the first ones), they stand at equal
    distances, rounded.

    >>> balanced(24, 2)
    (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 23)
    >>> balanced(6, 1.2)
    (0, 1, 2, 4, 5)
    """
    count = kept_count(depth, speedup)
    step = depth // (count - 1) if count > 2 else 0
    if step > 1:
        inner = [i for i in range(1, depth - 1) if i % step == 0][: count - 2]
        if len(inner) == count - 2:
            return (0, *inner, depth - 1)
    return tuple(torch.linspace(0, depth - 1, count, dtype=torch.float64).round().int().tolist()) if count > 1 else (0,)


def kept_count(depth: int, speedup: float) -> int:
    """How many blocks a speed-up leaves, one at least."""
    return max(1, int(depth / speedup + 1e-9))


def influence(graph: Graph, depth: int, count: int, samples: Samples) -> tuple[int, ...]:
    """Blocks to keep: those whose loss changes the state least go first, one by one, measured anew each time."""
    kept = list(range(depth))
    while len(kept) > count:
        moved = influences(graph, kept, samples)
        kept.pop(min(range(len(kept)), key=moved.__getitem__))
    return tuple(kept)


def influences(graph: Graph, kept: Sequence[int], samples: Samples) -> list[float]:
    """1 - cosine of the states before and after each block, the mean over all positions of all samples.

    Args:
        graph: with blocks; it stays as it is.
        kept: which of them run.
        samples: one or more.
    """
    made = copy_graph(graph)
    parts = take_apart(made)
    assert isinstance(parts, Parts)
    states = (parts.states[0], *(parts.states[i + 1] for i in kept))
    drop_blocks(made, parts, kept)
    made.outputs = tuple(Output("trace", f"state.{i}") for i in range(len(states)))
    made.set_arguments(made.body.returned, states)
    total, seen = torch.zeros(len(kept), dtype=torch.float64), 0
    for sample in samples:
        found = [t.double().flatten(0, -2) for t in interpret(made, sample).values()]
        apart = [1 - torch.cosine_similarity(a, b, dim=-1) for a, b in itertools.pairwise(found)]
        total += torch.stack(apart).sum(dim=1)
        seen += len(found[0])
    return [float(moved) for moved in total / seen]


def drop_blocks(graph: Graph, parts: Parts, kept: Sequence[int]) -> None:
    """Drop all blocks but these, in place."""
    checked(kept, parts.depth)
    gone: list[Node] = []
    stands: dict[Value, Value] = {}
    for index, block in enumerate(parts.repeats.blocks):
        if index not in kept:
            stands[block.carried_out] = stands.get(block.carried_in, block.carried_in)
            graph.replace(block.carried_out, stands[block.carried_out])
            gone += block.nodes
    order = {n: i for i, n in enumerate(graph.body)}
    erase_unread(graph, sorted(gone, key=order.__getitem__))


def checked(kept: Sequence[int], depth: int) -> None:
    """Raises: UsageError: a block that is not there, or one named twice."""
    if list(kept) != sorted(set(kept)):
        raise UsageError(f"blocks go up, {':'.join(map(str, kept))} does not")
    wrong = next((i for i in kept if not 0 <= i < depth), None)
    if wrong is not None:
        raise UsageError(f"there is no block {wrong}: the model has {depth} blocks", hint=f"from 0 to {depth - 1}")
