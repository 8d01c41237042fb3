"""A kit: all that a machine with a GPU which TensorRT-RTX cannot address needs to build the engine itself.

The last step uses datacenter TensorRT, which builds for the GPU that is present. It has not been run where this was
written: there was no such machine. What the kit holds is checked: the ONNX twin against the graph, the text by parsing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backends.base import BuildOptions, Device
from backends.onnx_emit.emit import unsupported
from backends.payload import payload, write
from backends.tensorrt.builder import UNBOUNDED
from backends.tensorrt.emit import profile_of
from backends.tensorrt.legality import why_not
from backends.tensorrt.library import DATACENTER, version
from ir import Graph, show
from ir.errors import MissingError, ResourceError, UntrustedError
from ir.types import DTYPE_NAMES

_SCHEMA = 1


@dataclass(frozen=True)
class Kit:
    """What is told beside the files.

    Attributes:
        device, capability: whom it is for.
        inputs, outputs: element types by name.
        precision: element types of the graph's tensors.
        profile: smallest, likeliest and largest shape of each dynamic input.
        twin: name of the ONNX file, empty when an operator has no ONNX form.
        verified: how the numbers can be checked without the GPU.
        finished: always false here.
    """

    device: str
    capability: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    precision: tuple[str, ...]
    profile: Mapping[str, Any]
    dims: Mapping[str, Any]
    twin: str
    verified: str
    finished: bool = False


def kit_file(folder: Path, stem: str) -> Path:
    """What is told beside the files."""
    return folder / f"{stem}.kit.json"


def text_file(folder: Path, stem: str) -> Path:
    """The graph."""
    return folder / f"{stem}.ir"


def write_kit(graph: Graph, folder: Path, options: BuildOptions) -> tuple[str, ...]:
    """Write the graph, its ONNX twin and the manifest; the weights lie in the folder. Gives remarks.

    Raises:
        ResourceError: no space, no permission.
    """
    twin = f"{options.stem}.twin"
    faults = unsupported(graph)
    remarks = [f"no ONNX twin in the kit: {faults[0]}"] if faults else []
    if not faults:
        write(graph, folder, flavor="portable", stem=twin)
    profile, dims = profile_of(graph, UNBOUNDED)
    types = sorted({DTYPE_NAMES[v.tensor.dtype] for n in graph.walk() for v in n.results if hasattr(v.type, "dtype")})
    outputs = zip(graph.outputs, graph.body.returned.operands, strict=False)
    kit = Kit(
        options.device.name, options.device.capability,
        {spec.name: DTYPE_NAMES[v.tensor.dtype] for v, spec in graph.inputs.items() if spec.kind != "param"},
        {o.name: DTYPE_NAMES[v.tensor.dtype] for o, v in outputs if hasattr(v.type, "dtype")},
        tuple(types), profile, dims, "" if faults else payload(folder, twin).name,
        "the native step was not run: it needs the GPU; the ONNX twin equals the graph in ONNX Runtime",
    )  # fmt: skip
    try:
        text_file(folder, options.stem).write_text(show(graph))
        kit_file(folder, options.stem).write_text(json.dumps({"schema": _SCHEMA, **asdict(kit)}, indent=1) + "\n")
    except OSError as error:
        raise ResourceError(f"cannot write the kit into {folder}: {error.strerror}") from error
    return (*remarks, "a kit: the engine is built on the machine that has the GPU (penstock build-on-target)")


def read_kit(folder: Path, stem: str) -> tuple[str, Kit]:
    """Text of the graph, and what is told beside it.

    Raises:
        UntrustedError: there is no kit.
    """
    try:
        told = json.loads(kit_file(folder, stem).read_text())
        assert told.pop("schema") == _SCHEMA
        return text_file(folder, stem).read_text(), Kit(**told)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, AssertionError):
        raise UntrustedError(f"{folder} holds no kit for TensorRT") from None


def require_datacenter(device: Device) -> None:
    """The package that builds for the GPU that is present, and that GPU.

    Raises:
        MissingError: either is not here.
    """
    if version(DATACENTER) is None:
        raise MissingError(
            "datacenter TensorRT is not installed, which builds for the GPU of this machine",
            hint="pip install tensorrt (or tensorrt-cu12, tensorrt-cu13 for its CUDA)",
        )
    if reason := why_not(device, rtx=False):
        raise MissingError(reason)
