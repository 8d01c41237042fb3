"""Engines behind one contract. Importing this package imports no engine."""

from __future__ import annotations

from backends.base import (
    CPU,
    WEIGHTS_FILE,
    Backend,
    BuildOptions,
    Built,
    Device,
    Engine,
    FlowProof,
    Unsupported,
)
from backends.inductor import Inductor
from backends.onnxruntime_engine import OnnxRuntime
from backends.openvino_engine import OpenVino
from backends.reference import Reference
from backends.tensorrt.backend import TensorRT
from backends.tvm.backend import Tvm
from ir.errors import UsageError, nearest

BACKENDS: tuple[Backend, ...] = (OpenVino(), OnnxRuntime(), Inductor(), TensorRT(), Tvm(), Reference())
"""All of them, the fastest kind first. Each imports its engine when it is first used."""

__all__ = [
    "BACKENDS", "CPU", "WEIGHTS_FILE", "Backend", "BuildOptions", "Built", "Device", "Engine", "FlowProof",
    "Unsupported", "backend",
]  # fmt: skip


def backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        UsageError: there is none; names the nearest.
    """
    for known in BACKENDS:
        if known.name == name:
            return known
    raise UsageError(f"no backend is named {name!r}", hint=nearest(name, [b.name for b in BACKENDS]))
