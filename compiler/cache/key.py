"""The key of a compile: digests of all that decides what comes out of it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch

from compiler.artifact import cpu_flags, cpu_model, penstock_version
from ir.types import DTYPE_NAMES
from ir.weights import raw_bytes

_MAX_TEXT = 200


@dataclass(frozen=True, slots=True)
class Components:
    """All that decides what a compile gives. Two compiles with equal components are the same compile.

    Attributes:
        ir: digest of the IR text as captured (``digest_text``).
        weights: ``digest_tensors`` of the captured weights, and of the initial states.
        recipe: text of the recipe.
        target: name of the hardware.
        engine: the choice asked for (``auto``, or a name).
        engine_version: of that engine, or of all that ``auto`` may choose from.
        threads: asked for; empty for the engine's choice.
        calibration: ``digest_samples`` of the calibration inputs; empty without.
        penstock: version of this compiler.
        machine: this processor: what was measured here need not be fastest, or exact, elsewhere.
    """

    ir: str
    weights: str
    recipe: str
    target: str
    engine: str
    engine_version: str
    threads: str = ""
    calibration: str = ""
    penstock: str = field(default_factory=penstock_version)
    machine: str = field(default_factory=lambda: machine_text())

    @property
    def record(self) -> dict[str, str]:
        """For ``Manifest.made_from``; long texts by their digest."""
        return {name: _short(text) for name, text in asdict(self).items()}

    @property
    def key(self) -> str:
        """The cache key."""
        return key_of(self.record)


def key_of(record: Mapping[str, str]) -> str:
    """SHA-256 of named components, whatever their order."""
    return digest_text(json.dumps(dict(sorted(record.items()))))


def digest_text(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT and text.isprintable() else digest_text(text)


def digest_tensors(*groups: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, types and contents; one tensor at a time, no copy of contiguous ones."""
    sha = hashlib.sha256()
    for group in groups:
        for name in sorted(group):
            tensor = group[name]
            sha.update(json.dumps([name, DTYPE_NAMES[tensor.dtype], list(tensor.shape)]).encode() + b"\n")
            sha.update(raw_bytes(tensor))
        sha.update(b"\n")
    return sha.hexdigest()


def digest_samples(samples: Sequence[Mapping[str, torch.Tensor]]) -> str:
    """SHA-256 of calibration inputs, in their order; empty without any."""
    return digest_tensors(*samples) if samples else ""


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_text() -> str:
    """This processor: architecture, model, cores that we may use, a digest of its features."""
    return f"{platform.machine()} {cpu_model()} x{_cores()} {digest_text(' '.join(sorted(cpu_flags())))[:12]}"
