"""What an artifact says about itself: ``Manifest`` and its text, ``manifest.json``.

``Manifest.text`` writes, ``compiler.artifact.strict.read_manifest`` reads back exactly.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any, TypeAlias

from compiler.artifact.generation import Generation
from compiler.artifact.processor import Processor
from ir import DimRange, Graph, NoneType, PenstockError, ScalarType, TensorType, Type, show_dim
from ir.types import DTYPE_NAMES

SCHEMA = 2
FORMAT = "penstock-artifact"
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
"""Holds the digest of ``manifest.json``, as ``sha256sum -c`` reads it, so that every byte is covered."""
BEFORE, AFTER = "before.ir", "after.ir"
STATES = "states.safetensors"
"""Initial content of the states; absent when the model came with none."""

STATES_OF_BUILD = ("built", "kit")
"""``kit``: all that is needed, to be finished on a machine that has the device (``penstock build-on-target``)."""

Record: TypeAlias = Mapping[str, Any]
"""A plain mapping of JSON values: whatever the caller wants to keep."""


@dataclass(frozen=True, slots=True)
class Port:
    """One tensor that goes in or comes out.

    Attributes:
        kind: ``input`` or ``state`` on the way in, ``output``, ``state`` or ``trace`` on the way out.
        name: as the user named it.
        dtype: a name of ``ir.types.DTYPES``; an output may be ``none`` (the model returns None there).
        shape: each dim as ``ir.show_dim`` writes it.
    """

    kind: str
    name: str
    dtype: str
    shape: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(self.shape)}]"


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine that runs the artifact; ``threads`` of ``None`` is the engine's own choice."""

    name: str
    version: str
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceNeed:
    """Where the payload runs: ``cpu``, or ``cuda`` of that compute capability times ten."""

    kind: str = "cpu"
    capability: int = 0

    def __str__(self) -> str:
        return "the CPU" if self.kind == "cpu" else f"a GPU of compute capability {self.capability / 10:.1f}"


@dataclass(frozen=True, slots=True)
class FileFact:
    """Digest and size of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that an artifact says about itself, beside its files.

    Attributes:
        name: of the model, for people.
        engine: who runs the payload.
        inputs, outputs: in the order of the graph's arguments and results.
        dims: bounds of each symbol in the shapes.
        processor: what the artifact asks of the machine that runs it.
        target: name of the hardware it was compiled for.
        recipe: text of the recipe, enough to compile again.
        passes: one record per pass, in order.
        measurements: loss, speed-up, baseline, tier.
        made_from: components of the cache key: digests of all that went in (``compiler.cache.cache``).
        files: filled by ``seal``; every file except the manifest and its seal.
        device: where the payload runs.
        requires: what the payload needs there, by name (``tensorrt_rtx: 1.7.1.116``).
        state: ``built``, or ``kit``.
        flow: what is known about each branch and loop, see ``backends.FlowProof``.
        depth: of a model whose rows leave early (``compiler.depth.section``); ``None``: all run every block.
        generate: of a language model with a cache; ``None``: the artifact only maps inputs to outputs.
        created: UTC.
        penstock: version that wrote it.
        schema: version of this record.
    """

    name: str
    engine: EngineChoice
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    dims: Mapping[str, DimRange] = field(default_factory=dict)
    processor: Processor = Processor()  # noqa: RUF009  (frozen)
    target: str = ""
    recipe: str = ""
    passes: tuple[Record, ...] = ()
    measurements: Record = field(default_factory=dict)
    made_from: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FileFact] = field(default_factory=dict)
    device: DeviceNeed = DeviceNeed()
    requires: Mapping[str, str] = field(default_factory=dict)
    state: str = "built"
    flow: tuple[Record, ...] = ()
    generate: Generation | None = None
    depth: Record | None = None
    created: str = field(default_factory=lambda: now())
    penstock: str = field(default_factory=lambda: penstock_version())
    schema: int = SCHEMA

    @property
    def states(self) -> tuple[Port, ...]:
        """The inputs that are carried from call to call, and the settings."""
        return tuple(port for port in self.inputs if port.kind == "state")

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the states that no output renews: what a call does not name stays as it was compiled."""
        renewed = {port.name for port in self.outputs if port.kind == "state"}
        return tuple(port.name for port in self.states if port.name not in renewed)

    def text(self) -> str:
        """Content of ``manifest.json``.

        Raises:
            PenstockError: a record holds what JSON cannot carry (a NaN, a tensor).
        """
        try:
            return json.dumps(self._plain(), indent=1, allow_nan=False) + "\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise PenstockError(f"the manifest of {self.name!r} cannot be written as JSON: {error}") from error

    def _plain(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "schema": self.schema,
            "penstock": self.penstock,
            "name": self.name,
            "created": self.created,
            "target": self.target,
            "recipe": self.recipe,
            "engine": {
                "name": self.engine.name,
                "version": self.engine.version,
                "threads": self.engine.threads,
            },
            "processor": {"arch": self.processor.arch, "flags": list(self.processor.flags)},
            "device": asdict(self.device),
            "requires": dict(self.requires),
            "state": self.state,
            "flow": [dict(record) for record in self.flow],
            "dims": {name: [bounds.min, bounds.max] for name, bounds in self.dims.items()},
            "inputs": [asdict(port) for port in self.inputs],
            "outputs": [asdict(port) for port in self.outputs],
            "passes": [dict(record) for record in self.passes],
            "measurements": dict(self.measurements),
            "made_from": dict(self.made_from),
            **({"depth": dict(self.depth)} if self.depth is not None else {}),
            **({"generate": self.generate.plain()} if self.generate is not None else {}),
            "files": {name: {"sha256": fact.sha256, "bytes": fact.bytes} for name, fact in self.files.items()},
        }


def ports(graph: Graph) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs (states among them) and outputs of a graph, in its order."""
    inputs = tuple(
        _port(spec.kind, spec.name, value.type) for value, spec in graph.inputs.items() if spec.kind != "param"
    )
    outputs = []
    for output, arg in zip(graph.outputs, graph.body.returned.args, strict=True):
        # a literal (None, 3) may be returned too; it has no type of its own
        outputs.append(_port(output.kind, output.name, getattr(arg, "type", None) or _literal_type(arg)))
    return inputs, tuple(outputs)


def _literal_type(arg: object) -> Type:
    return NoneType() if arg is None else ScalarType(type(arg).__name__)


def _port(kind: str, name: str, type_: Type) -> Port:
    match type_:
        case TensorType():
            return Port(kind, name, DTYPE_NAMES[type_.dtype], tuple(map(show_dim, type_.shape)))
        case ScalarType():  # an engine hands a number out as a tensor without dims
            return Port(kind, name, {"int": "i64", "float": "f64"}.get(type_.kind, type_.kind), ())
        case NoneType():
            return Port(kind, name, "none", ())


def now() -> str:
    """UTC to the second; ``SOURCE_DATE_EPOCH`` fixes it, for reproducible artifacts."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(epoch) if epoch.isdigit() else None))


def penstock_version() -> str:
    """Version of the installed package; a bare checkout has none."""
    try:
        return metadata.version("penstock")
    except metadata.PackageNotFoundError:
        return "0+checkout"
