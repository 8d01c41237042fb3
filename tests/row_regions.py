"""Graphs of one ``rows`` whose region is given as text; ``live`` is an input, so that tests decide who lives."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import indent

import torch

from ir import Graph, Node, parse, verify
from tests.corpus import add_weights

_TEXT = """penstock-ir 1
graph "rows"
dim n [1, 64]
input %live: bool[n] "live"
input %x: f32[n, 3, 4] "x"
input %m: f32[n, 3, 3] "m"
param %w: f32[4, 4] "w"
%y: f32[n, 3, 4] = rows(%live, [%x], [%m], [%w]) do  # model.py:1
region(%a: f32[u0, 3, 4], %b: f32[u0, 3, 3], %c: f32[4, 4])
{body}
  return %r
end
return "y" %y
"""
LIVE: Mapping[str, tuple[int, ...]] = {"none": (), "some": (1, 4, 6), "all": tuple(range(8))}


def rows_of(body: str) -> Graph:
    """``body`` makes ``%r`` of ``%a`` (carried), ``%b`` (beside) and ``%c`` (closed)."""
    lines = "\n".join(line.strip() for line in body.strip().splitlines())
    graph = parse(_TEXT.format(body=indent(lines, "  ")))
    add_weights(graph)
    verify(graph)
    return graph


def the_rows(graph: Graph) -> Node:
    """The outermost ``rows``."""
    return next(node for node in graph if node.op.name == "rows")


def some_inputs(batch: int, live: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Inputs of ``rows_of``; ``live`` are the places of the live rows."""
    g = torch.Generator().manual_seed(batch)
    alive = torch.tensor([i in live for i in range(batch)])
    return {
        "live": alive,
        "x": torch.randn(batch, 3, 4, generator=g),
        "m": torch.randn(batch, 3, 3, generator=g),
    }
