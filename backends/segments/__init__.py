"""A graph with branches and loops as several engines and a small host scheduler.

For a backend that cannot lower a region operator, or lowers it so that both sides run: the graph is cut there, each
straight piece is an engine of its own under ``STEM.0``, ``STEM.1``, and ``STEM.schedule.json`` says how to run them.
All share the folder's weights. An untaken side is never started, by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from backends.base import (
    CPU,
    DEFAULT,
    WEIGHTS_FILE,
    Backend,
    BuildOptions,
    Built,
    Device,
    Engine,
    FlowProof,
    Unsupported,
    flow_name,
)
from backends.rows import Prepared, prepared
from backends.segments.cut import Cut, cut, has_regions
from backends.segments.reader import read_schedule
from backends.segments.schedule import MAX_BYTES, MAX_SEGMENTS
from backends.segments.scheduler import Scheduler
from ir import ROWS, Block, Graph, Node
from ir.errors import ResourceError, UnsupportedError, UntrustedError
from ir.ops import REGIONS
from ir.rowwise import mixing
from ir.weights import load as load_weights

__all__ = [
    "Scheduler",
    "build_engine",
    "build_segments",
    "cut",
    "has_regions",
    "is_segmented",
    "load_engine",
    "load_segments",
    "ready_for",
    "refusals",
    "region_nodes",
    "simulated_segments",
    "unsupported_segments",
]  # fmt: skip


def region_nodes(block: Block) -> Iterator[Node]:
    """Every branch and loop, in the order of the nodes, outer before inner: that of ``Built.flow`` of segments."""
    for node in block:
        if node.regions:
            yield node
        for region in node.regions:
            yield from region_nodes(region)


def schedule_file(folder: Path, stem: str) -> Path:
    """Where the schedule lies; it is there exactly when the payload is segments."""
    return folder / f"{stem}.schedule.json"


def is_segmented(folder: Path, stem: str = "engine") -> bool:
    """Whether the payload in a folder is segments."""
    return schedule_file(folder, stem).is_file()


def unsupported_segments(graph: Graph, inner: Backend, device: Device = CPU) -> list[Unsupported]:
    """Everything in the straight pieces that the inner backend cannot carry."""
    try:
        parts = _cut_for(graph, inner)
    except UnsupportedError as error:
        return [Unsupported("segments", error.where, error.what)]
    return [fault for segment in parts.segments for fault in inner.unsupported(segment, device)]


def _cut_for(graph: Graph, inner: Backend) -> Cut:
    return cut(graph, bucketed=inner.rows == "bucketed")


def ready_for(graph: Graph, backend: Backend, device: Device = CPU, whole: bool = False) -> Prepared:
    """The graph as a backend takes it: ``rows`` masked, not bucketed, where it must be one engine or cannot be cut."""
    rows = backend.rows == "bucketed" and any(node.op is ROWS for node in graph.walk())
    masked = rows and (whole or bool(unsupported_segments(graph, backend, device)))
    return prepared(graph, backend, "masked" if masked else "")


def refusals(graph: Graph, inner: Backend, device: Device = CPU) -> tuple[list[Unsupported], list[Unsupported]]:
    """What the backend itself refuses of a graph, and what is left of that when the graph may be cut."""
    refused = inner.unsupported(graph, device)
    if inner.rows == "bucketed":  # one engine would compute every row
        lacking = {one.op for one in refused}
        rows = [n for n in graph.walk() if n.op is ROWS and n.op.name not in lacking]
        refused += [Unsupported(n.op.name, str(n.origin), "one engine would compute every row") for n in rows]
    if not refused or not {one.op for one in refused} <= REGIONS.keys():
        return refused, refused
    return refused, unsupported_segments(graph, inner, device)


def simulated_segments(graph: Graph, inner: Backend, device: Device) -> Engine | None:
    """As ``Backend.simulated``, for every piece; none when a piece has none."""
    parts = _cut_for(graph, inner)
    pieces = [inner.simulated(segment, device) for segment in parts.segments]
    engines = [piece for piece in pieces if piece is not None]
    weights = {name: graph.weights[key] for name, key in parts.schedule.weights.items()}
    return Scheduler(parts.schedule, engines, weights) if len(engines) == len(pieces) else None


def build_segments(graph: Graph, folder: Path, inner: Backend, options: BuildOptions = DEFAULT) -> Built:
    """Cut a graph and let the inner backend build every piece.

    ``folder`` holds the weights of the whole graph; each piece reads its own among them.

    Raises:
        UnsupportedError: the graph cannot be cut, or a piece cannot be carried.
        ResourceError: no space, no permission, out of memory, out of time.
        BuildError: the builder failed.
    """
    parts = _cut_for(graph, inner)
    count = len(parts.segments)
    if count > MAX_SEGMENTS:
        raise UnsupportedError(f"the graph falls into {count} segments, more than {MAX_SEGMENTS}")
    remarks: list[str] = []
    requires: dict[str, str] = {}
    for number, segment in enumerate(parts.segments):
        told = _part_of(options, number, count)
        built = inner.build(segment, folder, replace(options, stem=f"{options.stem}.{number}", progress=told))
        remarks += [r for r in built.remarks if r not in remarks]
        requires.update(built.requires)
    path = schedule_file(folder, options.stem)
    try:
        path.write_text(parts.schedule.text(), encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error
    remarks.append(f"cut at its branches and loops into {count} segments that the host runs as the data says")
    return Built(tuple(remarks), {"segments": count}, _proofs(graph, inner), requires)


def load_segments(folder: Path, inner: Backend, threads: int | None = None, stem: str = "engine") -> Engine:
    """The engine that ``build_segments`` wrote.

    Raises:
        UntrustedError: the schedule is none, or a piece is missing.
        MissingError: the inner backend's package is not installed.
    """
    path = schedule_file(folder, stem)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UntrustedError(f"{path} is larger than {MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UntrustedError(f"cannot read {path}: {error}") from error
    schedule = read_schedule(text)
    weights = load_weights(folder / WEIGHTS_FILE) if schedule.weights else {}
    if missing := [name for name in schedule.weights.values() if name not in weights]:
        raise UntrustedError(f"{path} names the weight {missing[0]!r}, which {WEIGHTS_FILE} does not hold")
    segments = [inner.load(folder, threads, f"{stem}.{number}") for number in range(schedule.segments)]
    return Scheduler(schedule, segments, {name: weights[key] for name, key in schedule.weights.items()})


def build_engine(graph: Graph, folder: Path, backend: Backend, options: BuildOptions = DEFAULT) -> Built:
    """What ``load_engine`` loads: as the backend does it, or segments where it has no branches or loops.

    For a graph whose lowering nobody measures; ``compiler.select.lowering`` chooses by what it measured.

    Raises:
        UnsupportedError: with the whole list.
        ResourceError: no space, no permission, out of memory, out of time.
        BuildError: the builder failed.
    """
    ready = ready_for(graph, backend, options.device)
    if ready.refused:
        raise UnsupportedError("\n".join(map(str, ready.refused)))
    graph = ready.graph
    refused, left = refusals(graph, backend, options.device)
    if refused and not left:
        built = build_segments(graph, folder, backend, options)
    else:
        schedule_file(folder, options.stem).unlink(missing_ok=True)  # of what lay there before
        built = backend.build(graph, folder, options)
    return replace(built, flow=(*ready.flow, *built.flow))


def load_engine(folder: Path, backend: Backend, threads: int | None = None, stem: str = "engine") -> Engine:
    """Whatever a backend wrote into a folder: one engine, or segments of it."""
    if is_segmented(folder, stem):
        return load_segments(folder, backend, threads, stem)
    return backend.load(folder, threads, stem)


def _part_of(options: BuildOptions, number: int, count: int) -> Callable[[str, float], None]:
    return lambda phase, fraction: options.progress(phase, (number + fraction) / count)


def _proofs(graph: Graph, inner: Backend) -> tuple[FlowProof, ...]:
    """By construction: a piece that stands on one side of a decision is started on that side only."""
    seen: Mapping[str, str] = {
        "cond": "each side is made of engines of its own, and the host starts those of the side it takes",
        "while": "test and body are engines of their own, and the host starts the body while the test is true",
        "rows": "the region is engines of its own, and the host starts them on the live rows, or not at all",
    }
    return tuple(
        FlowProof(flow_name(node), form, "structural", seen[node.op.name] + _PADDING.get(form, ""), lazy=True)
        for node in region_nodes(graph.body)
        for form in [_form(node, inner)]
    )


_PADDING: Mapping[str, str] = {"bucketed": ", padded to a power of two"}


def _form(node: Node, inner: Backend) -> str:
    """What became of a node; rows whose padding could touch the others run in as many rows as are live."""
    return "bucketed" if node.op is ROWS and inner.rows == "bucketed" and not mixing(node) else "segments"
