"""What a backend promises: to say what it cannot do, to build files, to load them into an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from ir import Graph

WEIGHTS_FILE = "weights.safetensors"
"""Lies beside the payload of every engine; payloads refer to it, so weights are on disk once."""


@dataclass(frozen=True, slots=True)
class Unsupported:
    """One thing that a backend cannot carry.

    Attributes:
        op: operator name.
        origin: where in the user's model.
        reason: what is missing, and what would help.
    """

    op: str
    origin: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op}{' at ' + self.origin if self.origin else ''}: {self.reason}"


class Engine(ABC):
    """A loaded model. Inputs and outputs are torch tensors by name; new states come as ``state:NAME``."""

    @abstractmethod
    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run once. Inputs were checked by the caller."""

    def facts(self) -> Mapping[str, int | str]:
        """What the built engine really contains (``int8_matmuls: 36``), read from the engine itself."""
        return {}


class Backend(ABC):
    """Turns a graph into files, and files into an engine."""

    name: ClassVar[str]
    install: ClassVar[str]
    """The one command that brings a missing one."""

    @abstractmethod
    def version(self) -> str | None:
        """Version of the engine's package, ``None`` when it is not installed. Imports nothing heavy."""

    @abstractmethod
    def unsupported(self, graph: Graph) -> list[Unsupported]:
        """Everything in the graph that this backend cannot carry; empty means it can be built."""

    @abstractmethod
    def build(self, graph: Graph, folder: Path) -> None:
        """Write the payload into ``folder``, where ``weights.safetensors`` of the graph lies already.

        Raises:
            UnsupportedError: with the whole list.
            ResourceError: no space, no permission.
        """

    @abstractmethod
    def load(self, folder: Path, threads: int | None = None) -> Engine:
        """The engine that ``build`` wrote; ``threads`` of ``None`` is the engine's own choice.

        Raises:
            MissingError: the package is not installed.
        """
