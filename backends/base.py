"""What a backend promises: to say what it cannot do, to build files, to load them into an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import torch

from ir import Graph, Node
from ir.errors import MissingError

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


@dataclass(frozen=True, slots=True)
class Device:
    """The machine to build for, as far as a backend must know it. It need not be present.

    Attributes:
        name: of the target, such as ``cpu`` or ``l4``.
        kind: ``cpu`` or ``cuda``.
        capability: CUDA compute capability times ten (89 for 8.9); 0 for a processor.
        memory: bytes; 0 when unknown.
        formats: number formats with a hardware path (fp32, tf32, fp16, bf16, fp8, int8, fp4, int4).
    """

    name: str = "cpu"
    kind: str = "cpu"
    capability: int = 0
    memory: float = 0.0
    formats: frozenset[str] = frozenset()


CPU = Device()


def _unheard(phase: str, fraction: float) -> None:
    """Progress that nobody listens to."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build.

    Attributes:
        device: to build for.
        timeout: seconds after which a builder in a child process is stopped; ``None`` never.
        memory: bytes that such a child may hold; ``None``: no bound of ours.
        progress: hears the phase and the fraction done, 0 to 1.
        stem: name of the payload's files without suffix; several payloads may share a folder and its weights.
    """

    device: Device = CPU
    timeout: float | None = 1800.0
    memory: int | None = None
    progress: Callable[[str, float], None] = _unheard
    stem: str = "engine"


DEFAULT = BuildOptions()


@dataclass(frozen=True, slots=True)
class FlowProof:
    """What is known about a branch or loop of a built engine: does the side that is not taken cost nothing?

    Attributes:
        node: ``cond`` or ``while`` (or ``rows``), and where in the user's model.
        lowering: what the engine got: ``if``, ``loop``, ``unrolled``, ``segments``, ``masked``, ``compacted``,
            ``bucketed``.
        evidence: ``measured``, ``structural`` (read from the built engine) or ``none``.
        detail: one sentence of what was seen.
        seconds: where measured: time of the engine by path (``taken``, ``untaken``, ``full``).
        lazy: whether the evidence says that an untaken side is skipped.
    """

    node: str
    lowering: str
    evidence: str
    detail: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    lazy: bool = False


def flow_name(node: Node) -> str:
    """``FlowProof.node`` of a region operator."""
    return f"{node.op.name} at {node.origin}" if str(node.origin) else node.op.name


@dataclass(frozen=True, slots=True)
class Built:
    """What a build made and found out.

    Attributes:
        remarks: what the user should know: choices of lowering, warnings of the builder.
        facts: as ``Engine.facts``, where they can be read without running the engine.
        flow: one proof per branch and loop, as far as the backend can tell by itself.
        requires: what the machine that loads it must have, by name (``tensorrt_rtx: 1.7.1.116``). ``cpu`` holds the
            processor's features as Linux spells them, with spaces between.
    """

    remarks: tuple[str, ...] = ()
    facts: Mapping[str, int | str] = field(default_factory=dict)
    flow: tuple[FlowProof, ...] = ()
    requires: Mapping[str, str] = field(default_factory=dict)


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
    deviations: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Where its kernels knowingly part from torch, by name: ``nan`` (NaN may be lost), ``int64`` (whole numbers beyond
    32 bits may be wrong), ``denormal`` (numbers below the normal ones may become zero). The conformance suite
    allows these, and counts them."""
    rows: ClassVar[str] = "masked"
    """How it gets ``rows``: compacted where sizes may depend on the data, else masked (``ir.rows.MODES``); or bucketed:
    cut into segments, which the host runs on the live rows in a few sizes (``backends.buckets``)."""
    patient: ClassVar[bool] = False
    """Compiles kernels, for half a minute and more: on a processor it takes part when asked for, or with ``all``."""

    @abstractmethod
    def version(self) -> str | None:
        """Version of the engine's package, ``None`` when it is not installed. Imports nothing heavy."""

    def why_not(self, device: Device) -> str:
        """Why nothing can be built for a device, in one sentence; empty when it can."""
        return "" if device.kind == "cpu" else f"{self.name} builds for the CPU only"

    @abstractmethod
    def unsupported(self, graph: Graph, device: Device = CPU) -> list[Unsupported]:
        """Everything in the graph that this backend cannot carry on a device; empty means it can be built."""

    @abstractmethod
    def build(self, graph: Graph, folder: Path, options: BuildOptions = DEFAULT) -> Built:
        """Write the payload into ``folder``, where ``weights.safetensors`` with the graph's weights lies already.

        The file may hold more weights than the graph has: several graphs may share it.

        Raises:
            UnsupportedError: with the whole list.
            ResourceError: no space, no permission, out of memory, out of time.
            BuildError: the builder crashed or failed for a reason of its own.
        """

    def simulated(self, graph: Graph, device: Device) -> Engine | None:
        """An engine on this CPU that computes what was emitted for a device, to check the emission; if there is one."""
        return None

    def kit(self, graph: Graph, folder: Path, options: BuildOptions = DEFAULT) -> Built | None:
        """For a device that ``why_not`` refuses here: write what ``finish`` needs there. ``None``: there is no way."""
        return None

    def finish(self, folder: Path, options: BuildOptions = DEFAULT) -> Built:
        """On the machine that has the device: build the payload from a kit, as ``build`` does from a graph."""
        raise MissingError(f"{self.name} makes no kits, so there is nothing to finish")

    @abstractmethod
    def load(self, folder: Path, threads: int | None = None, stem: str = "engine") -> Engine:
        """The engine that ``build`` wrote; ``threads`` of ``None`` is the engine's own choice.

        Raises:
            MissingError: the package is not installed, or the device is not there.
        """
