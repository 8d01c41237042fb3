"""The processor to compile for, from the flags that it tells."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_LEVELS = (  # best first: name, LLVM's processor, flags needed, floats per vector
    (
        "amx",
        "sapphirerapids",
        ("amx_int8", "amx_tile", "avx512_vnni", "avx512f", "avx512bw", "avx512vl", "avx512dq"),
        16,
    ),
    ("vnni", "icelake-server", ("avx512_vnni", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vbmi2"), 16),
    ("vnni", "cascadelake", ("avx512_vnni", "avx512f", "avx512bw", "avx512vl", "avx512dq"), 16),
    ("avx512", "skylake-avx512", ("avx512f", "avx512bw", "avx512vl", "avx512dq"), 16),
    ("avx2", "haswell", ("avx2", "fma", "bmi2", "f16c"), 8),
)


@dataclass(frozen=True, slots=True)
class Cpu:
    """What code generation must know of a processor.

    Attributes:
        level: ``amx``, ``vnni``, ``avx512``, ``avx2`` or ``portable``.
        model: LLVM's name; empty for its plain default.
        flags: what the machine that loads the library must have, as Linux spells it.
        lanes: floats in a vector register.
    """

    level: str
    model: str = ""
    flags: tuple[str, ...] = ()
    lanes: int = 4

    def target(self) -> dict[str, Any]:
        """TVM's description."""
        made: dict[str, Any] = {"kind": "llvm", "num-cores": os.cpu_count() or 1}
        if self.model:
            made["mcpu"] = self.model
        if self.lanes == 16:
            made["mattr"] = ["-prefer-256-bit"]
        return made


PORTABLE = Cpu("portable")


@lru_cache(maxsize=1)
def flags_here() -> frozenset[str]:
    """Flags of this machine's processor; none where they cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def named(level: str) -> Cpu:
    """The processor of a level, the best model of it."""
    for name, model, flags, lanes in _LEVELS:
        if name == level:
            return Cpu(name, model, flags, lanes)
    return PORTABLE


def cpu_here(flags: frozenset[str] | None = None) -> Cpu:
    """The best level that a processor with such flags (this one) has."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return PORTABLE
    have = flags_here() if flags is None else flags
    for name, model, needed, lanes in _LEVELS:
        if have.issuperset(needed):
            return Cpu(name, model, needed, lanes)
    return PORTABLE
