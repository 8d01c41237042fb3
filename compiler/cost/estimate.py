"""``penstock estimate``: one table of predicted latency and memory for many targets and sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from compiler.cost.cost import Flow, estimate
from compiler.cost.plan import make_plan
from compiler.cost.targets import Target, target
from ir import Graph

BATCH, SEQ = "batch", "seq"
_WIDTH = 100


@dataclass(frozen=True, slots=True)
class EstimateRow:
    """One line of the table.

    Attributes:
        target: name of the machine.
        sizes: every dim with its size.
        seconds: one call.
        margin: relative uncertainty, a factor of ``1 + margin`` either way.
        tier: provenance of ``seconds``, see ``compiler.cost.calibration.TIERS``.
        floor: seconds that the datasheet's roofline needs.
        samples_per_second: calls times batch per second.
        flops, bytes: of one call.
        weight_bytes, peak_bytes: of memory.
        memory_bytes: that the target has.
        fits: whether the peak leaves room for driver and allocator.
        kernels: launches in one call.
        bounds: part of the time bound by compute, memory and launch.
        notes: what was assumed.
    """

    target: str
    sizes: Mapping[str, int]
    seconds: float
    margin: float
    tier: str
    floor: float
    samples_per_second: float
    flops: int
    bytes: int
    weight_bytes: int
    peak_bytes: int
    memory_bytes: int
    fits: bool
    kernels: int
    bounds: Mapping[str, float]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "notes": list(self.notes)}


def estimate_table(
    graph: Graph,
    targets: Sequence[str | Target],
    batches: Sequence[int] = (),
    seqs: Sequence[int] = (),
    sizes: Mapping[str, int] | None = None,
    flow: Flow | None = None,
) -> list[EstimateRow]:
    """Estimates for every target, batch and sequence length; the graph is priced once.

    Args:
        graph: any verified graph.
        targets: names or machines.
        batches: sizes of the dim ``batch``; may be empty when the model has none.
        seqs: sizes of the dim ``seq``.
        sizes: sizes of all other dims.
        flow: how often branches and loops run.

    Raises:
        UsageError: an unknown target or dim, or a size outside the range of its dim.
    """
    machines = [t if isinstance(t, Target) else target(t) for t in targets]
    plan = make_plan(graph)
    axes = [[(name, size) for size in chosen] for name, chosen in ((BATCH, batches), (SEQ, seqs)) if chosen]
    rows = []
    for machine, chosen in itertools.product(machines, itertools.product(*axes)):
        given = {**(sizes or {}), **dict(chosen)}
        found = estimate(plan, machine, given, flow)
        rows.append(
            EstimateRow(
                target=machine.name,
                sizes=given,
                seconds=found.seconds,
                margin=found.margin,
                tier=found.tier,
                floor=found.floor,
                samples_per_second=given.get(BATCH, 1) / found.seconds if found.seconds else float("inf"),
                flops=found.flops,
                bytes=found.bytes,
                weight_bytes=found.weight_bytes,
                peak_bytes=found.peak_bytes,
                memory_bytes=int(machine.memory),
                fits=found.fits,
                kernels=found.kernels,
                bounds={bound: found.share(bound) for bound in ("compute", "memory", "launch")},
                notes=found.notes,
            )
        )
    return rows


def render(rows: Iterable[EstimateRow], console: Console) -> None:
    """Print the table, at most 100 columns wide, and below it what was assumed.

    A narrow console folds cells; nothing is cut off. ``memory`` is the peak, and the capacity when short.
    """
    rows, width = list(rows), min(_WIDTH, console.width)
    names = list(dict.fromkeys(name for row in rows for name in row.sizes))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("target", overflow="fold")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("latency", overflow="fold")
    table.add_column("samples/s", justify="right", overflow="fold")
    table.add_column("memory", justify="right", overflow="fold")
    table.add_column("bound by", overflow="fold")
    for row in rows:
        memory = show_bytes(row.peak_bytes)
        table.add_row(
            row.target,
            *(str(row.sizes.get(name, "")) for name in names),
            show_latency(row),
            f"{row.samples_per_second:,.0f}" if row.samples_per_second >= 10 else f"{row.samples_per_second:.2g}",
            memory if row.fits else Text(f"{memory} > {show_bytes(row.memory_bytes)}", style="bold red"),
            _bound_words(row.bounds),
        )
    console.print(table, width=width)
    for note in dict.fromkeys(f"{row.target}: {note}" for row in rows for note in row.notes):
        console.print(Text(note, style="dim"), width=width)


def show_latency(row: EstimateRow) -> str:
    """Latency with its uncertainty and provenance: ``12.4 ms ±9% (calibrated)``."""
    return f"{show_seconds(row.seconds)} ±{row.margin:.0%} ({row.tier})"


def show_seconds(seconds: float) -> str:
    """Three digits and a unit.

    >>> show_seconds(0.01238)
    '12.4 ms'
    """
    scale, unit = next(
        ((scale, unit) for scale, unit in ((1.0, "s"), (1e-3, "ms")) if seconds >= 0.9995 * scale),
        (1e-6, "us"),
    )
    return f"{_three_digits(seconds / scale)} {unit}"


def show_bytes(bytes_: int) -> str:
    """Three digits and a unit; decimal, as datasheets count.

    >>> show_bytes(438_000_000)
    '438 MB'
    """
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if bytes_ >= 0.9995 * scale:
            return f"{_three_digits(bytes_ / scale)} {unit}"
    return f"{bytes_} B"


def _three_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 99.95 else f"{number:.1f}" if number >= 9.995 else f"{number:.2f}"


def _bound_words(bounds: Mapping[str, float]) -> str:
    name, share = max(bounds.items(), key=lambda item: item[1])
    return f"{name} {share:.0%}"
