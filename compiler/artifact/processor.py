"""Which processor an engine payload needs, and whether this one will do."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

ANY = "any"
_CPUINFO = Path("/proc/cpuinfo")
_FLAG_LINES = ("flags", "Features")  # x86, ARM


@dataclass(frozen=True, slots=True)
class Processor:
    """What a payload asks of the processor; the default asks nothing.

    Attributes:
        arch: as ``platform.machine()`` says it, or ``any`` for a portable payload (ONNX, say).
        flags: CPU features without which the payload fails or computes other numbers. Saturating int8
            products, for one, are exact only with VNNI.
    """

    arch: str = ANY
    flags: tuple[str, ...] = ()

    @classmethod
    def here(cls, *flags: str) -> Processor:
        """This machine's architecture, with those of the named features that the payload depends on."""
        return cls(platform.machine(), tuple(sorted(flags)))

    @property
    def native(self) -> bool:
        """Whether the payload is bound to one architecture."""
        return self.arch != ANY

    def lacks(self) -> str:
        """Why a payload that needs this machine cannot run here; empty when it can."""
        if self.native and self.arch != platform.machine():
            return f"it was compiled for {self.arch}, this machine is {platform.machine()}"
        here = cpu_flags()
        # no list of features (not Linux) proves nothing, so it refuses nothing
        missing = sorted(set(self.flags) - here) if here else []
        return f"it needs the CPU features {', '.join(missing)}, which this machine lacks" if missing else ""


def cpu_flags() -> frozenset[str]:
    """Features of this processor as Linux names them; empty where that cannot be known."""
    try:
        text = _CPUINFO.read_text("utf-8", "replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in _FLAG_LINES:
            return frozenset(value.split())
    return frozenset()


def cpu_model() -> str:
    """The processor's name for people and cache keys; empty where it cannot be known."""
    try:
        text = _CPUINFO.read_text("utf-8", "replace")
    except OSError:
        return ""
    names = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    return next(names, "")
