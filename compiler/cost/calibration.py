"""Which parameters time a kernel on a target, and how far to trust them.

``calibration.yaml`` holds fits per machine and format. A machine that was not measured borrows from its
family; one without family gets the datasheet and its efficiencies. Every answer says which it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from compiler.cost.kernels import AttentionFit, GemmFit
from compiler.cost.targets import Target, load_targets

PACKAGED = Path(__file__).with_name("calibration.yaml")
TIERS = ("measured", "interpolated", "calibrated", "transferred", "datasheet", "prior")
"""Strongest first: the exact kernel was timed; between timed ones; a model fitted on this machine; on
another machine or format; datasheet times efficiency; a guess."""

_PRIOR_ERROR = 1.0  # a factor of two either way: what differs between machines that share an instruction set
_ALIKE = {
    "fp16": ("bf16",),  # one tensor path, one rate
    "int8": ("fp8", "bf16"),
    "fp8": ("int8", "bf16"),
    "fp4": ("fp8", "bf16"),
    "fp32": ("bf16",),
    "tf32": ("bf16",),
}


@dataclass(frozen=True, slots=True)
class Trust:
    """How well a number is known.

    Attributes:
        tier: one of ``TIERS``.
        error: nine of ten kernels lie within a factor ``1 + error``.
    """

    tier: str
    error: float


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """Kernels that only move memory: ``t0`` seconds and the fraction of bandwidth they reach."""

    t0: float
    memory: float


@dataclass(frozen=True)
class Calibration:
    """Fits by target and format (or phase, or kind), each with its error, and errors of what is borrowed."""

    gemm: Mapping[tuple[str, str], tuple[GemmFit, float]]
    attention: Mapping[tuple[str, str], tuple[AttentionFit, float]]
    memory: Mapping[tuple[str, str], tuple[MemoryFit, float]]
    errors: Mapping[str, float]

    def unmeasured(self, target: Target) -> Trust:
        """Trust in the datasheet of a target."""
        if target.kind == "cpu":
            return Trust("prior", _PRIOR_ERROR)
        return Trust("datasheet", self.errors["datasheet"])

    def borrowed(self, trust: Trust) -> Trust:
        """Trust in a fit that is used for a kernel it was not made for."""
        return Trust("transferred", max(trust.error, self.errors["transferred"]))

    def for_gemm(self, target: Target, format_: str, quantizes: bool) -> tuple[GemmFit, Trust] | None:
        """Parameters of products, or ``None`` where nothing near was measured."""
        for other in (format_, *_ALIKE.get(format_, ())):
            for source in (target.name, *_siblings(target)):
                if (source, other) not in self.gemm:
                    continue
                fit, error = self.gemm[source, other]
                if fit.quantize and not quantizes and (source, "bf16") in self.gemm:
                    # the timings of 8-bit products hold a second kernel, which quantizes
                    fit, error = replace(fit, t0=self.gemm[source, "bf16"][0].t0), self.errors["transferred"]
                elif (source, other) == (target.name, format_):
                    return fit, Trust("calibrated", error)
                if quantizes and not fit.quantize:  # timed without: a second kernel at the speed of a copy
                    fit = replace(fit, t0=2 * fit.t0, quantize=target.efficiency["bw"])
                if source != target.name:
                    fit = _carried(fit, load_targets()[source], target, other)
                return fit, self.borrowed(Trust("calibrated", error))
        return None

    def for_attention(self, target: Target, format_: str, decode: bool) -> tuple[AttentionFit, Trust] | None:
        """Parameters of attention: ``decode`` when there is one query."""
        if format_ not in ("bf16", "fp16"):
            return None  # flash kernels are written for 16-bit formats
        phase = "decode" if decode else "prefill"
        if (target.name, phase) in self.attention:
            fit, error = self.attention[target.name, phase]
            return fit, Trust("calibrated" if format_ == "bf16" else "transferred", error)
        for source in _siblings(target):
            if (source, phase) in self.attention:
                fit, error = self.attention[source, phase]
                carried = _carried(fit, load_targets()[source], target, "bf16")
                return carried, self.borrowed(Trust("calibrated", error))
        return None

    def for_memory(self, target: Target, kind: str) -> tuple[MemoryFit, Trust]:
        """Parameters of kernels without a product; ``kind`` as in ``Price``."""
        kind = "norm" if kind in ("norm", "reduction") else "pointwise"
        if (target.name, kind) in self.memory:
            fit, error = self.memory[target.name, kind]
            return fit, Trust("calibrated", error)
        if target.kind == "cpu":
            return MemoryFit(target.t0, target.efficiency["bw"]), self.unmeasured(target)
        known = [fit.memory for (_, other), (fit, _) in self.memory.items() if other == kind]
        share = min(sum(known) / len(known), target.efficiency["bw"])
        return MemoryFit(target.t0, share), Trust("transferred", self.errors["transferred"])


@lru_cache(maxsize=4)
def load_calibration(path: Path = PACKAGED) -> Calibration:
    """The fits of a calibration file."""
    data = yaml.safe_load(path.read_text())
    return Calibration(
        gemm={key: (_made(GemmFit, row), row["held_out"]["dram"]["p90"]) for key, row in _flat(data["gemm"])},
        attention={
            key: (_made(AttentionFit, row), row["held_out"]["dram"]["p90"]) for key, row in _flat(data["attention"])
        },
        memory={key: (_made(MemoryFit, row), row["error"]) for key, row in _flat(data["memory"])},
        errors={tier: row["p90"] for tier, row in data["errors"].items()},
    )


def _flat(table: Mapping[str, Mapping[str, Any]]) -> list[tuple[tuple[str, str], Mapping[str, Any]]]:
    return [((name, key), row) for name, rows in table.items() for key, row in rows.items()]


def _made(kind: Any, row: Mapping[str, Any]) -> Any:
    return kind(**{name: float(row[name]) for name in kind.__dataclass_fields__ if name in row})


def _siblings(target: Target) -> list[str]:
    """Targets of the same family, nearest compute capability first."""
    others = [t for t in load_targets().values() if t.arch == target.arch and t.name != target.name]
    return [t.name for t in sorted(others, key=lambda t: t.cc != target.cc)]


def _carried(fit: Any, source: Target, target: Target, format_: str) -> Any:
    """A fit for another machine: shapes as fitted, efficiencies and launch as the two data rows relate."""
    compute = fit.compute * target.achieved(format_) / source.achieved(format_)
    memory = fit.memory * target.efficiency["bw"] / source.efficiency["bw"]
    t0 = max(target.t0, fit.t0 + target.t0 - source.t0)
    return replace(fit, t0=t0, compute=min(compute, 1.0), memory=min(memory, 1.0))
