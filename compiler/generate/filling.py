"""The fill ``project``: of a token that left early, the other layers get keys and values of the state it left with.

The step of one token without the last blocks still has their caches to grow: what is left of those blocks is a norm and
the projections that make keys and values, and these now read the state of the last block that runs. So the engine is
the ``decode`` graph after ``depth{mode=nested}``; it is captured from nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from compiler.job import Job
from compiler.pipeline.recipe import CLEAN
from compiler.select.reference import Reference
from ir import Graph, interpret
from ir.copy import copy_graph
from passes import PASSES, Depth, DropDeadNodes, parse_passes
from passes.depth_parts import take_apart


class _Meaning(nn.Module):
    """A graph of one step as the interpreter runs it: there is no module of the user's that projects."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, past_mask: Tensor, cache: Mapping[str, list[Tensor]]
    ) -> dict[str, Tensor]:
        """See ``compiler.generate.step.Step``."""
        held = {f"cache_{kind}_{i}": t for kind, layers in cache.items() for i, t in enumerate(layers)}
        inputs = {"input_ids": input_ids, "position_ids": position_ids, "past_mask": past_mask, **held}
        return dict(interpret(self._graph, inputs))


def projecting(decode: Job, before: Graph, layers: int, of: int) -> Job | str:
    """The job of one token through the first layers that grows the caches of all, or a sentence why there is none.

    Args:
        decode: the job of one token through all layers, optimised.
        before: its graph as captured.
        layers: how many run.
        of: how many the model has: the blocks that are found must be just these.
    """
    clean = copy_graph(before)
    for pass_ in parse_passes(CLEAN, PASSES):
        pass_.run(clean)
    graphs = {}
    for name, graph in {"": clean, **decode.graphs}.items():
        made = copy_graph(graph)
        parts = take_apart(made)
        if isinstance(parts, str):
            return parts
        if parts.depth != of:
            return f"{parts.depth} repeated blocks were found for {of} layers"
        Depth(mode="nested", layers=(layers,)).run(made)
        DropDeadNodes().run(made)
        graphs[name] = made
    whole = graphs.pop("")
    return replace(decode, graphs=graphs, reference=Reference(replace(decode.spec, model=_Meaning(whole)), whole))
