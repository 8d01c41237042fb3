"""The GPUs that TVM builds for here, as its schedules must know them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arch:
    """A compute capability.

    Attributes:
        capability: times ten.
        gpus: that have it.
        host: machine of the processor beside it, as an LLVM triple; empty for any.
    """

    capability: int
    gpus: str
    host: str = ""

    @property
    def name(self) -> str:
        """As compilers spell it. The plain one: TVM's schedules take no tensor cores from a name like ``sm_90a``."""
        return f"sm_{self.capability}"


ARCHS = (
    Arch(75, "T4"),
    Arch(80, "A100"),
    Arch(86, "A10"),
    Arch(87, "Orin", "aarch64-linux-gnu"),
    Arch(89, "L4, RTX 4090"),
    Arch(90, "H100, H200"),
    Arch(100, "B200"),
    Arch(120, "RTX 5090"),
)
SHARED_MEMORY = 48 << 10
"""Bytes a thread block may have on each of them without asking."""
THREADS, WARP = 1024, 32


def arch_of(capability: int) -> Arch | None:
    """The arch of that capability, ``None`` where there is none."""
    return next((arch for arch in ARCHS if arch.capability == capability), None)
