"""How an engine gets its branches and loops: as the backend lowers them, or as segments that the host dispatches.

The backend's own lowering is taken where it is proven to skip what is not taken, by the builder from the built engine
or by measurement here; one that computes both sides is never taken. What the backend cannot lower at all is cut. Exits
are also cut where the pieces are faster: some engines optimise straight graphs only (OpenVINO has its fast int8
products there, not within branches).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from backends.base import WEIGHTS_FILE, Backend, BuildOptions, Built, Engine, FlowProof, Unsupported
from backends.segments import build_segments, has_regions, refusals, region_nodes, unsupported_segments
from compiler.select.forced import regions_of
from compiler.select.measure import interleave
from compiler.select.skipping import Limits, Tensors, Verdict, Way, beside, native, prove, segments, share_weights
from ir import ROWS, Graph
from ir import weights as weight_files
from ir.errors import BuildError, UnsupportedError
from passes.depth_exits import THRESHOLDS

_QUICK = 20.0
"""Seconds; what took longer to build is not built once more to see whether it would be faster."""
_SECONDS = 0.5
_WORTH = 0.8


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
    rows: Graph | None = None,
) -> Lowered:
    """Write a graph's weights and engine into a folder, and load it.

    Args:
        graph: with its weights.
        backend: whose engine.
        folder: of the payload; it is made here, once it is clear that something can be built.
        inputs: to measure with.
        limits: of time for the proofs; the defaults when absent.
        options: of the build.
        rows: the same graph before its ``rows`` were written out for the backend: to be cut there, if that is faster.

    Raises:
        UnsupportedError: lists what the backend cannot carry; or it computes both sides and cannot be cut.
        PenstockError: the build or the load failed.
    """
    limits, options = limits or Limits(), options or BuildOptions()
    refused, left = refusals(graph, backend, options.device)
    if left:
        raise UnsupportedError(listing(left))
    folder.mkdir(parents=True, exist_ok=True)
    weight_files.save(graph.weights, folder / WEIGHTS_FILE)
    if not has_regions(graph):
        return _made(native(backend), graph, folder, limits, options)
    try:
        if refused:
            why = _absent(backend, refused)
        else:
            made, why = _native(graph, backend, folder, inputs, limits, options)
            if made is not None:
                if rows is not None and (why := _slower(made, rows, backend, folder, inputs, limits, options)):
                    return _cut(rows, backend, folder, inputs, limits, options, why)
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


def _slower(
    made: Lowered, graph: Graph, backend: Backend, folder: Path, inputs: Tensors, limits: Limits, options: BuildOptions
) -> str:
    """Why a graph is better cut at its ``rows``; empty where it is not, or where to find out would take long."""
    if made.seconds > _QUICK or unsupported_segments(graph, backend, options.device):
        return ""
    scratch, way = beside(folder), segments(backend)
    share_weights(folder, scratch)
    try:
        way.build(graph, scratch, options)
        engine = way.load(scratch, limits.threads, options.stem)
    except BuildError:
        return ""
    inputs = {**graph.initial, **inputs}
    deepest = {name: torch.full_like(t, torch.inf) for name, t in graph.initial.items() if name == THRESHOLDS}
    calls: dict[str, Callable[[], object]] = {}
    for depth, given in (("as set", inputs), ("all blocks", {**inputs, **deepest})):
        calls |= {f"own {depth}": partial(made.engine, given), f"cut {depth}": partial(engine, given)}
    found = interleave(calls, _SECONDS)
    own, cut = (sum(t.median for name, t in found.items() if name.startswith(word)) for word in ("own", "cut"))
    if cut > _WORTH * own:
        return ""
    return f"{backend.name} takes {own / cut:.2f} times as long with branches of its own"


def _cut(
    graph: Graph, backend: Backend, folder: Path, inputs: Tensors, limits: Limits, options: BuildOptions, why: str
) -> Lowered:
    _clear(folder, options)
    way = segments(backend)
    made = _made(way, graph, folder, limits, options)
    whole = any(node.op is ROWS for node in graph.walk())  # the host does these itself, on no straight line
    verdicts = [] if whole else prove(graph, backend, way, inputs, folder, limits)
    measured = dict(zip((r.node for r in regions_of(graph)), verdicts, strict=False))
    pairs = zip(region_nodes(graph.body), made.built.flow, strict=True)
    flow = tuple(_stronger(measured[node], p) if node in measured else p for node, p in pairs)
    remarks = (f"{why}: segments with host dispatch", *made.remarks)
    return replace(made, lowering=way.name, flow=flow, remarks=remarks)


def _made(way: Way, graph: Graph, folder: Path, limits: Limits, options: BuildOptions) -> Lowered:
    start = time.perf_counter()
    built = way.build(graph, folder, options)
    engine = way.load(folder, limits.threads, options.stem)
    return Lowered(engine, built, time.perf_counter() - start, remarks=built.remarks)


def build_unmeasured(graph: Graph, backend: Backend, folder: Path, options: BuildOptions) -> Built:
    """For a machine that is not here: native, unless the backend cannot, or proves itself that nothing is skipped.

    Raises:
        UnsupportedError: neither way can carry the graph.
        PenstockError: the build failed.
    """
    refused, left = refusals(graph, backend, options.device)
    if left:
        raise UnsupportedError(listing(left))
    why = _absent(backend, refused)
    if not refused:
        built = backend.build(graph, folder, options)
        bad = [p for p in built.flow if p.evidence != "none" and not p.lazy]
        if not bad:
            return built
        why = f"{backend.name} computes both sides of {bad[0].node} ({bad[0].detail})"
        if faults := unsupported_segments(graph, backend, options.device):
            raise UnsupportedError(f"{why}, and its pieces cannot stand alone: {listing(faults)}")
        _clear(folder, options)
    built = build_segments(graph, folder, backend, options)
    return replace(built, remarks=(f"{why}: segments with host dispatch", *built.remarks))


def _absent(backend: Backend, refused: Sequence[Unsupported]) -> str:
    return f"{backend.name} does not carry {' and '.join(sorted({one.op for one in refused}))}"


def _clear(folder: Path, options: BuildOptions) -> None:
    """Take out the files of a lowering that was not good enough."""
    for file in folder.glob(f"{options.stem}.*"):
        file.unlink()


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
