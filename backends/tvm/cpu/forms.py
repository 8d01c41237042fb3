"""What the processor does in its own way."""

from __future__ import annotations

from backends.tvm.cpu.target import Cpu
from backends.tvm.scope import Forms


def forms_of(cpu: Cpu) -> Forms:
    """Kernels and functions for a processor."""
    return Forms()
