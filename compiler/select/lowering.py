"""How an engine gets its branches and loops: as the backend lowers them, or as segments that the host dispatches.

The backend's own lowering is taken where it is proven to skip what is not taken, by the builder from the built engine
or by measurement here; one that computes both sides is never taken. What the backend cannot lower at all is cut.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backends.base import WEIGHTS_FILE, Backend, BuildOptions, Built, Engine, FlowProof, Unsupported
from backends.segments import has_regions, unsupported_segments
from compiler.select.skipping import Limits, Tensors, Verdict, Way, beside, native, prove, segments
from ir import COND, WHILE, Graph
from ir import weights as weight_files
from ir.errors import BuildError, UnsupportedError

_REGIONS = frozenset({COND.name, WHILE.name})


@dataclass(frozen=True)
class Lowered:
    """An engine, loaded, and how it came to its branches.

    Attributes:
        engine: ready to run.
        built: what the builder said.
        seconds: to build and load it, without the proofs.
        lowering: ``native``, ``segments``, or empty for a graph without branches and loops.
        flow: one proof per branch and loop.
        remarks: the choice and its reason, then the builder's own.
    """

    engine: Engine
    built: Built
    seconds: float
    lowering: str = ""
    flow: tuple[FlowProof, ...] = ()
    remarks: tuple[str, ...] = ()


def lower(
    graph: Graph,
    backend: Backend,
    folder: Path,
    inputs: Tensors,
    limits: Limits | None = None,
    options: BuildOptions | None = None,
) -> Lowered:
    """Write a graph's weights and engine into a folder, and load it.

    Args:
        graph: with its weights.
        backend: whose engine.
        folder: of the payload; it is made here, once it is clear that something can be built.
        inputs: to measure with.
        limits: of time for the proofs; the defaults when absent.
        options: of the build.

    Raises:
        UnsupportedError: lists what the backend cannot carry; or it computes both sides and cannot be cut.
        PenstockError: the build or the load failed.
    """
    limits, options = limits or Limits(), options or BuildOptions()
    refused = backend.unsupported(graph, options.device)
    branching = has_regions(graph)
    if refused and not (branching and {one.op for one in refused} <= _REGIONS):
        raise UnsupportedError(listing(refused))
    if refused and (faults := unsupported_segments(graph, backend, options.device)):
        raise UnsupportedError(listing(faults))
    folder.mkdir(parents=True, exist_ok=True)
    weight_files.save(graph.weights, folder / WEIGHTS_FILE)
    if not branching:
        return _made(native(backend), graph, folder, limits, options)
    try:
        if refused:
            why = f"{backend.name} does not carry {' and '.join(sorted({one.op for one in refused}))}"
        else:
            made, why = _native(graph, backend, folder, inputs, limits, options)
            if made is not None:
                return made
            if faults := unsupported_segments(graph, backend, options.device):
                raise UnsupportedError(f"{why}, and its pieces cannot stand alone: {listing(faults)}")
        return _cut(graph, backend, folder, inputs, limits, options, why)
    finally:
        shutil.rmtree(beside(folder), ignore_errors=True)


def _native(
    graph: Graph, backend: Backend, folder: Path, inputs: Tensors, limits: Limits, options: BuildOptions
) -> tuple[Lowered | None, str]:
    """As the backend lowers it, and why not; empty when it may stay."""
    way = native(backend)
    try:
        made = _made(way, graph, folder, limits, options)
    except BuildError as error:  # the pieces may be within its power
        return None, f"the {backend.name} builder fails on the whole ({error.what.splitlines()[0]})"
    flow, bad = made.built.flow, []
    if not flow or not all(p.lazy for p in flow):
        verdicts = prove(graph, backend, way, inputs, folder, limits)
        flow, bad = tuple(v.proof for v in verdicts), [v.proof for v in verdicts if not v.keep]
    if not bad:
        remarks = (f"branches and loops stay within the engine: {_told(flow)}", *made.remarks)
        return replace(made, lowering=way.name, flow=flow, remarks=remarks), ""
    what = "computes both sides" if bad[0].evidence == "measured" else "is not proven to skip the untaken side"
    return None, f"{backend.name} {what} of {bad[0].node} ({bad[0].detail})"


def _cut(
    graph: Graph, backend: Backend, folder: Path, inputs: Tensors, limits: Limits, options: BuildOptions, why: str
) -> Lowered:
    for file in folder.glob(f"{options.stem}.*"):  # of the lowering that was not good enough
        file.unlink()
    way = segments(backend)
    made = _made(way, graph, folder, limits, options)
    verdicts = prove(graph, backend, way, inputs, folder, limits)
    flow = tuple(_stronger(v, p) for v, p in zip(verdicts, made.built.flow, strict=True))
    remarks = (f"{why}: segments with host dispatch", *made.remarks)
    return replace(made, lowering=way.name, flow=flow, remarks=remarks)


def _made(way: Way, graph: Graph, folder: Path, limits: Limits, options: BuildOptions) -> Lowered:
    start = time.perf_counter()
    built = way.build(graph, folder, options)
    engine = way.load(folder, limits.threads, options.stem)
    return Lowered(engine, built, time.perf_counter() - start, remarks=built.remarks)


def _stronger(measured: Verdict, structural: FlowProof) -> FlowProof:
    """What was measured, where it says something; else what the construction says, with the times."""
    if measured.proof.evidence == "measured" and measured.proof.lazy:
        return measured.proof
    detail = f"{structural.detail}; {measured.proof.detail}"
    return replace(structural, detail=detail, seconds=measured.proof.seconds)


def _told(flow: Sequence[FlowProof]) -> str:
    lazy = sum(p.lazy for p in flow)
    rest = "" if lazy == len(flow) else f", {len(flow) - lazy} too small to tell or not measured"
    return f"{lazy} of {len(flow)} proven to skip what is not taken{rest}"


def listing(refused: Sequence[Unsupported], most: int = 20) -> str:
    """What an engine refuses, equal reasons told once."""
    places: dict[tuple[str, str], list[str]] = {}
    for one in refused:
        places.setdefault((one.op, one.reason), []).append(one.origin)
    lines = [
        f"{op}{f' ({len(at)} times, first at {at[0]})' if len(at) > 1 else f' at {at[0]}' if at[0] else ''}: {reason}"
        for (op, reason), at in places.items()
    ]
    more = f"\n  - and {len(lines) - most} more kinds" if len(lines) > most else ""
    return f"{len(refused)} operation(s) it cannot carry:" + "\n  - ".join(["", *lines[:most]]) + more
