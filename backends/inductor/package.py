"""What a package says about itself: order of inputs, names of outputs, where its weights lie, what it must run on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ir import Graph
from ir.errors import UntrustedError

_KEY = "penstock"


@dataclass(frozen=True, slots=True)
class Described:
    """Kept in the package's own metadata, as JSON.

    Attributes:
        kind: ``cpu`` or ``cuda``.
        inputs: names in the order of the library's arguments.
        outputs: names in the order of its results; a state's is ``state:NAME``.
        weights: constant of the library to name in ``weights.safetensors``.
        flags: features of the processor that it needs.
        torch: version that built it.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, str]
    flags: tuple[str, ...]
    torch: str


def describe(graph: Graph, kind: str, flags: Sequence[str], weights: Mapping[str, str]) -> dict[str, str]:
    """Metadata for the package of a graph."""
    import torch

    inputs = [spec.name for spec in graph.inputs.values() if spec.kind in ("input", "state")]
    outputs = [o.key for o in graph.outputs]
    said = {
        "kind": kind, "inputs": inputs, "outputs": outputs, "weights": dict(weights), "flags": list(flags),
        "torch": str(torch.__version__),
    }  # fmt: skip
    return {_KEY: json.dumps(said)}


def described(metadata: Mapping[str, str], path: Path) -> Described:
    """Read it back.

    Raises:
        UntrustedError: it is not what ``describe`` wrote.
    """
    try:
        said: dict[str, Any] = json.loads(metadata[_KEY])
        return Described(
            str(said["kind"]),
            tuple(map(str, said["inputs"])),
            tuple(map(str, said["outputs"])),
            {str(k): str(v) for k, v in said["weights"].items()},
            tuple(map(str, said["flags"])),
            str(said["torch"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UntrustedError(f"{path} is no package of Penstock") from error
