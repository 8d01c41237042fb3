"""The table, JSON and markdown of ``examples.gpu_check``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import platform, python_version
from typing import Any

import torch

BASES = ("eager", "compile")
PACKAGES = ("torch", "triton", "apache-tvm", "apache-tvm-ffi", "tensorrt", "tensorrt-rtx", "torch-tensorrt")


@dataclass(frozen=True, slots=True)
class Row:
    """One engine on one model.

    Attributes:
        path: of the branches; empty without any.
        milliseconds: median of the rounds, ``None`` when it did not run.
        spread: half of the distance between the 10th and the 90th percentile, relative to the median.
        error: largest difference to eager in float32, relative to the largest value.
        predicted: milliseconds by the cost model.
        note: why it did not run, or what its library holds.
    """

    model: str
    dtype: str
    batch: int
    path: str
    engine: str
    milliseconds: float | None = None
    spread: float = 0.0
    error: float | None = None
    predicted: float | None = None
    note: str = ""


def environment(device: str, rounds: int) -> dict[str, Any]:
    """Date, machine and versions."""
    found: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "rounds": rounds}
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        found |= {"gpu": torch.cuda.get_device_name(), "capability": f"{major}.{minor}", "cuda": torch.version.cuda}
        found["driver"] = _driver()
    else:
        found["dry run"] = "on the processor, timed by the wall: these figures say nothing about a GPU"
    found |= {"platform": platform(), "python": python_version()}
    found["versions"] = {name: _version(name) for name in PACKAGES}
    return found


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown"
    return next((word for word in text.split() if word[:1].isdigit() and "." in word), "unknown")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


HEADER = ("model", "dtype", "batch", "path", "engine", "ms", "±", "/ eager", "/ compile", "predicted", "error", "note")


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Cells of the table; ratios are to eager and to ``torch.compile`` of the same cell."""
    bases = {(_key(row), row.engine): row.milliseconds for row in rows if row.engine in BASES}
    lines = []
    for row in rows:
        ratios = [_ratio(row.milliseconds, bases.get((_key(row), base))) for base in BASES]
        lines.append(
            (row.model, row.dtype, str(row.batch), row.path or "-", row.engine, _number(row.milliseconds, ".3f"),
             f"{row.spread:.0%}" if row.milliseconds else "-", *ratios, _number(row.predicted, ".3f"),
             _number(row.error, ".1e"), row.note)
        )  # fmt: skip
    return lines


def _key(row: Row) -> tuple[str, str, int, str]:
    return row.model, row.dtype, row.batch, row.path


def _ratio(a: float | None, b: float | None) -> str:
    return f"{a / b:.2f}" if a is not None and b else "-"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def markdown(rows: Sequence[Row], found: Mapping[str, Any]) -> str:
    """The report as a document."""
    lines = ["# GPU check", ""]
    for key, value in found.items():
        shown = ", ".join(f"{n} {v}" for n, v in value.items()) if isinstance(value, Mapping) else value
        lines.append(f"- {key}: {shown}")
    cells = [HEADER, tuple("---" for _ in HEADER), *table(rows)]
    return (
        "\n".join([*lines, "", *("| " + " | ".join(c.replace("|", "/") for c in line) + " |" for line in cells)]) + "\n"
    )
