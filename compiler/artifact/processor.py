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
    """What an artifact asks of the processor; the default asks nothing.

    A portable payload asks something too, if the numbers that were promised for it hold only there: int8
    products, for one, saturate on x86 without VNNI.

    Attributes:
        arch: as ``platform.machine()`` says it, or ``any``.
        flags: CPU features without which the payload fails or computes other numbers.
    """

    arch: str = ANY
    flags: tuple[str, ...] = ()

    @classmethod
    def here(cls, *flags: str) -> Processor:
        """This machine's architecture, with the features that the payload depends on."""
        return cls(platform.machine(), tuple(sorted(flags)))

    def lacks(self) -> str:
        """What is missing on the machine at hand; empty when nothing is."""
        if self.arch not in (ANY, platform.machine()):
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
