"""Machines to estimate for: datasheet figures as data, and this machine's own processor.

No target has to be present. ``targets.yaml`` is read strictly: a key nobody knows is an error, and
``lint`` holds each row against what its clock and units can do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from backends.base import Device
from ir.errors import UsageError, nearest

PACKAGED = Path(__file__).with_name("targets.yaml")
_FORMATS = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "fp4", "int4")
_REQUIRED = frozenset((
    "cc", "arch", "sms", "boost_mhz", "tclk", "fpc", "mem_gb", "mem", "bw", "l2_mb", "smem_kb", "peak",
    "sparse24", "nvlink", "pcie", "tdp_w", "t0", "ach",
))  # fmt: skip
_OPTIONAL = frozenset(("acc16", "unified"))
_CPU_KEYS = frozenset(("fp32", "bf16", "int8", "note"))
_CPU_PRIORS = frozenset(("assumed", "bw_per_core", "bw", "mem_gb", "t0", "ach"))
_ACHIEVED = frozenset(("mm", "mm8", "mm4", "bw", "tag"))


@dataclass(frozen=True, slots=True)
class Target:
    """A machine as a cost model sees it; plain SI units.

    Attributes:
        name: how users call it.
        kind: ``gpu`` or ``cpu``.
        cc: compute capability, or the instruction set of a processor.
        arch: family; machines of one family share calibrations.
        peak: dense operations per second by format (fp32, tf32, fp16, bf16, fp8, int8, fp4, int4); a
            format without a hardware path is absent.
        bandwidth: bytes per second of main memory.
        memory: bytes.
        t0: seconds that each kernel adds.
        efficiency: fraction of the datasheet that good kernels reach: ``mm``, ``mm8``, ``mm4`` (products by
            width of the format) and ``bw``.
        provenance: where ``efficiency`` comes from: ``measured`` or ``prior``.
        units: streaming multiprocessors, or cores.
        l2: bytes of the last-level cache; 0 when unknown.
        acc16: operations per second with 16-bit accumulation, where that differs.
    """

    name: str
    kind: str
    cc: str
    arch: str
    peak: Mapping[str, float]
    bandwidth: float
    memory: float
    t0: float
    efficiency: Mapping[str, float]
    provenance: str
    units: int
    l2: float = 0.0
    acc16: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def device(self) -> Device:
        """The same machine as a backend sees it."""
        digits = self.cc.replace(".", "")
        cuda = self.kind == "gpu" and digits.isdigit()
        kind = "cuda" if cuda else self.kind if self.kind == "cpu" else self.arch
        return Device(self.name, kind, int(digits) if cuda else 0, self.memory, frozenset(self.peak))

    def achieved(self, format_: str) -> float:
        """Fraction of ``peak[format_]`` that good products reach."""
        width = "mm8" if format_ in ("fp8", "int8") else "mm4" if format_ in ("fp4", "int4") else "mm"
        if self.kind == "cpu" and format_ == "bf16":
            width = "mm8"  # matrix tiles, like int8: far harder to fill than vector lanes
        return self.efficiency.get(width, self.efficiency["mm"])


@lru_cache(maxsize=8)
def load_targets(path: Path = PACKAGED) -> Mapping[str, Target]:
    """Every target of a file by name, GPUs first.

    Raises:
        UsageError: a key is unknown or missing, or a value is not what it should be.
    """
    data = _read(path)
    gpus = {name: _gpu(str(name), row) for name, row in data["targets"].items()}
    priors = data["cpu_priors"]
    cores, ghz = priors["assumed"]["cores"], priors["assumed"]["ghz"]
    note = f"{cores} cores at {ghz} GHz are assumed; bandwidth and efficiencies are priors"
    cpus = {
        name: _cpu(name, name, row, priors, cores, ghz, priors["mem_gb"] * 1e9, note)
        for name, row in data["cpus"].items()
    }
    return MappingProxyType(gpus | cpus)


def target(name: str, path: Path = PACKAGED) -> Target:
    """The target of that name; ``cpu`` is this machine.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    if name == "cpu":
        return this_cpu(path)
    known = load_targets(path)
    if name not in known:
        raise UsageError(f"there is no target named {name!r}", hint=nearest(name, ["cpu", *known]))
    return known[name]


def targets(text: str, path: Path = PACKAGED) -> tuple[Target, ...]:
    """Targets by name, separated by commas; ``all`` is this machine and every GPU that is known.

    Raises:
        UsageError: there is none of a name, or one stands twice.
    """
    if text == "all":
        return (this_cpu(path), *(t for t in load_targets(path).values() if t.kind == "gpu"))
    names = [part.strip() for part in text.split(",")]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise UsageError(f"the target {twice!r} stands twice")
    return tuple(target(name, path) for name in names)


def this_cpu(path: Path = PACKAGED) -> Target:
    """The processor of this machine, as the kernel describes it; bandwidth and efficiencies are priors."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:  # not Linux: nothing is known but the number of cores
        text, memory = "", None
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return read_cpu(text, usable, int(memory[1]) * 1024 if memory else 0, path)


def read_cpu(cpuinfo: str, usable: int, memory: float, path: Path = PACKAGED) -> Target:
    """A processor from the text of ``/proc/cpuinfo``.

    Args:
        cpuinfo: the text; an empty one gives the slowest known family.
        usable: hardware threads that this process may use.
        memory: bytes of main memory; 0 for the prior.
        path: targets file with the families and the priors.
    """
    data = _read(path)
    priors = data["cpu_priors"]
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in cpuinfo.splitlines())}
    flags = frozenset(fields.get("flags", "").split())
    family = _family(flags)
    threads_per_core = max(1, int(fields.get("siblings", 1)) // max(1, int(fields.get("cpu cores", 1))))
    cores = max(1, usable // threads_per_core)  # two threads share the arithmetic of one core
    named = re.search(r"@ ([\d.]+)\s*GHz", fields.get("model name", ""))  # the base clock holds under load
    ghz = float(named[1]) if named else float(fields.get("cpu MHz", 1000 * priors["assumed"]["ghz"])) / 1000
    row = dict(data["cpus"][family])
    if "avx512_bf16" in flags and row["bf16"] is None:
        row["bf16"] = 2 * row["fp32"]
    note = f"{cores} core(s) at {ghz:.2f} GHz, {family}; bandwidth and efficiencies are priors"
    return _cpu("cpu", family, row, priors, cores, ghz, memory or priors["mem_gb"] * 1e9, note)


def lint(name: str, row: Mapping[str, Any]) -> list[str]:
    """What is wrong with one GPU row of a targets file; empty when nothing is.

    Tables copied from the web often carry rates with sparsity, or of another part: units times clock
    times operations per clock must give the published dense peak.
    """
    faults = []
    peak = row["peak"]
    half = peak["fp16"]
    derived = row["sms"] * row["tclk"] * 1e6 * row["fpc"] / 1e12
    if abs(derived / half - 1) >= 0.02:
        doubled = " (a rate with sparsity?)" if abs(half / derived / 2 - 1) < 0.02 else ""
        faults.append(f"{name}: peak.fp16 {half:g} is not sms*tclk*fpc = {derived:.4g}{doubled}")
    for format_, low, high in (
        ("bf16", 0.98, 1.02),
        ("fp8", 1.9, 2.1),
        ("int8", 1.9, 4.1),
        ("fp4", 3.9, 8.1),
    ):
        rate = peak[format_]
        if rate is not None and not low <= rate / half <= high:
            faults.append(f"{name}: peak.{format_} {rate:g} is {rate / half:.3g} times fp16, not {low:g} to {high:g}")
    for key, value in row["ach"].items():
        if key != "tag" and not 0 < value <= 1:
            faults.append(f"{name}: ach.{key} {value:g} is not a fraction")
    faults += [f"{name}: {key} must be positive" for key in ("mem_gb", "bw", "t0", "tdp_w") if not row[key] > 0]
    return faults


def lint_file(path: Path = PACKAGED) -> list[str]:
    """What is wrong with the GPU rows of a targets file."""
    return [fault for name, row in _read(path)["targets"].items() for fault in lint(name, row)]


def _family(flags: frozenset[str]) -> str:
    for family, needed in (
        ("x86_amx", {"amx_tile", "amx_int8", "amx_bf16"}),
        ("x86_avx512_vnni", {"avx512f", "avx512_vnni"}),
        ("x86_avx512", {"avx512f"}),
    ):
        if needed <= flags:
            return family
    return "x86_avx2"


@lru_cache(maxsize=8)
def _read(path: Path) -> Mapping[str, Any]:
    data = yaml.safe_load(path.read_text())
    _keys("the targets file", data, frozenset(("schema", "targets", "cpus", "cpu_priors")))
    if data["schema"] != 1:
        raise UsageError(f"{path.name} has schema {data['schema']!r}; this version reads 1")
    for name, row in data["targets"].items():
        _keys(f"target {name}", row, _REQUIRED, _OPTIONAL)
        _keys(f"target {name}, peak", row["peak"], frozenset(_FORMATS))
        _keys(f"target {name}, acc16", row.get("acc16", {}), frozenset(), frozenset(_FORMATS))
        _keys(f"target {name}, ach", row["ach"], frozenset(("mm", "bw", "tag")), _ACHIEVED)
        if row["ach"]["tag"] not in ("measured", "prior"):
            raise UsageError(f"target {name}: tag {row['ach']['tag']!r} is neither measured nor prior")
    for name, row in data["cpus"].items():
        _keys(f"cpu {name}", row, _CPU_KEYS)
    _keys("cpu_priors", data["cpu_priors"], _CPU_PRIORS)
    return MappingProxyType(data)


def _keys(where: str, row: Any, required: frozenset[str], optional: frozenset[str] = frozenset()) -> None:
    if not isinstance(row, dict):
        raise UsageError(f"{where}: expected keys and values, found {row!r}")
    known: Sequence[str] = sorted(required | optional)
    for key in row:
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}", hint=nearest(str(key), list(known)))
    if missing := sorted(required - row.keys()):
        raise UsageError(f"{where}: missing {', '.join(missing)}")


def _gpu(name: str, row: Mapping[str, Any]) -> Target:
    return Target(
        name=name,
        kind="gpu",
        cc=str(row["cc"]),
        arch=row["arch"],
        peak=_rates(row["peak"]),
        bandwidth=row["bw"] * 1e9,
        memory=row["mem_gb"] * 1e9,
        t0=row["t0"] * 1e-6,
        efficiency=MappingProxyType({k: v for k, v in row["ach"].items() if k != "tag"}),
        provenance=row["ach"]["tag"],
        units=row["sms"],
        l2=(row["l2_mb"] or 0) * 1e6,
        acc16=_rates(row.get("acc16", {})),
    )


def _cpu(
    name: str,
    family: str,
    row: Mapping[str, Any],
    priors: Mapping[str, Any],
    cores: int,
    ghz: float,
    memory: float,
    note: str,
) -> Target:
    per_cycle = {k: v for k, v in row.items() if k != "note" and v is not None}
    return Target(
        name=name,
        kind="cpu",
        cc=family,
        arch="x86",
        peak=MappingProxyType({k: cores * ghz * 1e9 * v for k, v in per_cycle.items()}),
        bandwidth=min(cores * priors["bw_per_core"], priors["bw"]) * 1e9,
        memory=memory,
        t0=priors["t0"] * 1e-6,
        efficiency=MappingProxyType({k: v for k, v in priors["ach"].items() if k != "tag"}),
        provenance="prior",
        units=cores,
        note=note,
    )


def _rates(row: Mapping[str, float | None]) -> Mapping[str, float]:
    return MappingProxyType({k: v * 1e12 for k, v in row.items() if v is not None})
