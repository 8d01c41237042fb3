"""The reference backend: torch, node by node. Slow, always there, right by definition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from backends.base import CPU, DEFAULT, WEIGHTS_FILE, Backend, BuildOptions, Built, Device, Engine, Unsupported
from ir import Graph, interpret, parse, show
from ir.errors import ResourceError, UntrustedError
from ir.weights import load


class Reference(Backend):
    """Runs the IR as ``ir.interpret`` does."""

    name = "reference"
    install = "pip install penstock"
    rows = "compacted"

    def version(self) -> str | None:
        """Torch's version: torch is what runs."""
        return str(torch.__version__)

    def unsupported(self, graph: Graph, device: Device = CPU) -> list[Unsupported]:
        """Nothing: whatever the IR can say, torch can run."""
        return []

    def build(self, graph: Graph, folder: Path, options: BuildOptions = DEFAULT) -> Built:
        """Write the text of the graph, ``STEM.ir``."""
        path = folder / f"{options.stem}.ir"
        try:
            path.write_text(show(graph), encoding="utf-8")
        except OSError as error:
            raise ResourceError(f"cannot write {path}: {error.strerror}") from error
        return Built()

    def load(self, folder: Path, threads: int | None = None, stem: str = "engine") -> Engine:
        """Read the text back, over memory-mapped weights. Torch's threads belong to the whole process."""
        path = folder / f"{stem}.ir"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UntrustedError(f"cannot read {path}: {error}") from error
        return _Interpreter(parse(text, load(folder / WEIGHTS_FILE)))


class _Interpreter(Engine):
    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return interpret(self._graph, inputs)
