"""Small graphs in text: each kind of operation, each way that graphs are awkward.

``CORPUS`` holds the texts by name; ``load`` gives a graph with weights that depend on nothing but their names.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import torch

from ir import Graph, TensorType, parse
from ir.infer import Typer

_typers: dict[str, Typer] = {}
CORPUS: Mapping[str, str] = {p.stem: p.read_text() for p in sorted(Path(__file__).parent.glob("*.ir"))}


def load(name: str) -> Graph:
    """A corpus graph with weights."""
    graph = parse(CORPUS[name])
    graph.typer = _typers.setdefault(name, graph.typer)  # types derived once for all tests
    add_weights(graph)
    return graph


def add_weights(graph: Graph) -> None:
    """Give each param that has none a random tensor of its type."""
    for name, value in graph.arguments("param"):
        if name not in graph.weights:
            graph.weights.add(name, weight(name, value.tensor))


def weight(name: str, type_: TensorType) -> torch.Tensor:
    """A tensor that only the name and the type decide; scales and variances are positive."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    shape = [int(dim) for dim in type_.shape]
    if not type_.dtype.is_floating_point:
        return torch.randint(-100, 100, shape, generator=generator).to(type_.dtype)
    drawn = torch.randn(shape, generator=generator)
    if name.endswith(("scale", "var")):
        drawn = drawn.abs() * 0.01 + 0.001
    return drawn.to(type_.dtype)
