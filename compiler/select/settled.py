"""An engine of a graph with settings and traces, for callers that know the model's own inputs and outputs only."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from backends.base import Engine
from ir import Graph


class Settled(Engine):
    """Calls an engine with the default of each setting that the caller does not name; leaves traces out."""

    def __init__(self, engine: Engine, initial: Mapping[str, torch.Tensor]) -> None:
        self._engine, self._initial = engine, dict(initial)

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run once."""
        return without_traces(self._engine({**self._initial, **inputs}))

    def facts(self) -> Mapping[str, int | str]:
        """Those of the engine itself."""
        return self._engine.facts()


def settled(engine: Engine, graph: Graph) -> Engine:
    """The engine itself, unless its graph has settings or traces."""
    names = graph.settings()
    if not names and all(o.kind != "trace" for o in graph.outputs):
        return engine
    return Settled(engine, {name: graph.initial[name] for name in names})


def without_traces(results: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The answer alone."""
    return {name: tensor for name, tensor in results.items() if not name.startswith("trace:")}
