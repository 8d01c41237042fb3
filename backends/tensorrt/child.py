"""Builds one plan in a process of its own: ``python -m backends.tensorrt.child``, spoken to by ``backends.child``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from backends.base import WEIGHTS_FILE, Device
from backends.child import serve
from backends.tensorrt.builder import UNBOUNDED, build
from backends.tensorrt.emit import emit, flows_of, profile_of
from backends.tensorrt.library import version
from backends.tensorrt.plan import facts, proofs, read
from backends.tensorrt.requirements import Requirements, of_network, plan_file, requirements_file
from ir import parse
from ir.errors import ResourceError
from ir.weights import load


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
        "flow": [[p.node, p.lowering, p.evidence, p.detail, p.lazy] for p in proofs(flows, outside, program)],
    }


def _write(folder: Path, stem: str, plan: bytes, needs: Requirements) -> None:
    try:
        plan_file(folder, stem).write_bytes(plan)
        requirements_file(folder, stem).write_text(needs.text())
    except OSError as error:
        raise ResourceError(f"cannot write the plan into {folder}: {error.strerror}") from error


if __name__ == "__main__":
    serve(answer)
