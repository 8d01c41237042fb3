"""Builds one plan in a process of its own: ``python -m backends.tensorrt.child``, spoken to by ``backends.child``."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backends.base import WEIGHTS_FILE, Device
from backends.child import serve
from backends.tensorrt.builder import UNBOUNDED, build, value_inputs
from backends.tensorrt.emit import emit, flows_of, profile_of
from backends.tensorrt.library import version
from backends.tensorrt.plan import facts, proofs, read
from backends.tensorrt.requirements import Requirements, of_network, plan_file, requirements_file
from ir import parse
from ir.errors import ResourceError
from ir.weights import load

_ASK, _NO_RANDOM = 0xFFFFFFFF, 0x0040000  # linux/personality.h


def answer(request: dict[str, Any], progress: Callable[[str, float], None]) -> dict[str, Any]:
    """Build what a request says; the files lie in its folder afterwards."""
    folder = Path(request["folder"])
    device = Device(request["device"], "cuda", request["capability"])
    package = request["package"]
    graph = parse(request["text"], load(folder / WEIGHTS_FILE))
    emitted = emit(graph, device, package)
    profile, dims = profile_of(graph, UNBOUNDED)
    plan, warnings = build(emitted, profile, device, progress, package)
    needs = of_network(emitted, package, request["capability"], profile, dims)
    _write(folder, request["stem"], plan, needs)
    program = read(plan, version(package) if package == "tensorrt_rtx" else None)
    flows, outside = flows_of(emitted.network)
    open_ended = sorted(name for name, range_ in graph.dims.items() if range_.max is None)
    return {
        "warnings": warnings,
        "facts": facts(program, len(plan)),
        "unbounded": open_ended,
        "values": value_inputs(emitted.network.definition),
        "flow": [[p.node, p.lowering, p.evidence, p.detail, p.lazy] for p in proofs(flows, outside, program)],
    }


def _write(folder: Path, stem: str, plan: bytes, needs: Requirements) -> None:
    try:
        plan_file(folder, stem).write_bytes(plan)
        requirements_file(folder, stem).write_text(needs.text())
    except OSError as error:
        raise ResourceError(f"cannot write the plan into {folder}: {error.strerror}") from error


def steady() -> None:
    """Start over without random addresses: the builder orders some things by them, and the bytes of the plan with it.

    Where the system does not allow it, plans of dynamic shapes may differ from build to build in names and order.
    """
    try:
        personality = ctypes.CDLL(None).personality
        before = personality(_ASK)
        if before == -1 or before & _NO_RANDOM:
            return
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # threads take turns on their allocations alike
        personality(before | _NO_RANDOM)
        if not personality(_ASK) & _NO_RANDOM:
            return
    except (AttributeError, OSError):
        return
    os.execv(sys.executable, [sys.executable, "-m", "backends.tensorrt.child"])


if __name__ == "__main__":
    steady()
    serve(answer)
