"""Predicted time and memory of a graph on a target that need not be present.

Per kernel ``t = t0 + max(operations / reached rate, bytes / reached bandwidth)``, for products the tile and
wave model of ``compiler/kernels.py``; never under the roofline of the datasheet. Regions: a ``cond`` costs
its slower branch unless told how often each is taken, a ``while`` one trip unless told how many, ``rows`` every row
unless told which part of them lives.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from compiler.cost.calibration import TIERS, Calibration, Trust, load_calibration
from compiler.cost.plan import BlockPlan, Kernel, Plan, Step, make_plan
from compiler.cost.targets import Target
from compiler.cost.timing import Timing, time_kernel
from ir import COND, ROWS, Dim, Graph, Node, TensorType, Value, evaluate, symbols_of
from ir.dims import is_data_symbol
from ir.errors import UsageError
from ir.rows import groups, rows_symbol

USABLE_MEMORY = 0.92  # of the capacity: allocator slack and the driver's context take the rest
_DECISION = 15e-6  # seconds for a branch decided by the host of a GPU: a prior, 10 to 25 us were reported
_TIER_SHARE = 0.9  # the tier of a sum is the strongest that covers this part of it, with those above


@dataclass(frozen=True, slots=True)
class Row:
    """One kernel of an estimate.

    Attributes:
        ops: operators of the kernel, joined by ``+``.
        origin: where they stand in the user's model.
        seconds: of all its runs.
        times: runs per call of the model: below 1 in a branch seldom taken, above in a loop.
        bound: what decides: ``compute``, ``memory`` or ``launch``.
        flops: operations of one run.
        bytes: bytes moved by one run.
        floor: seconds that physics needs for all runs.
        trust: provenance of ``seconds``.
    """

    ops: str
    origin: str
    seconds: float
    times: float
    bound: str
    flops: int
    bytes: int
    floor: float
    trust: Trust


@dataclass(frozen=True)
class Estimate:
    """What a graph is predicted to cost for given sizes.

    Attributes:
        seconds: one call.
        low, high: nine of ten kernels lie within this factor of their prediction; errors taken to add up.
        floor: roofline of the datasheet; no prediction is below it.
        flops, bytes: operations done and bytes moved, in all.
        weight_bytes: all weights.
        peak_bytes: weights, arguments and the most that is alive at once.
        fits: whether the peak leaves the driver its share of the memory.
        kernels: launches in one call.
        tier: the strongest that covers nine tenths of the time, with those above it.
        rows: a row per kernel, in order.
        notes: what was assumed.
    """

    target: str
    sizes: Mapping[str, int]
    seconds: float
    low: float
    high: float
    floor: float
    flops: int
    bytes: int
    weight_bytes: int
    peak_bytes: int
    fits: bool
    kernels: int
    tier: str
    rows: tuple[Row, ...] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def margin(self) -> float:
        """Relative uncertainty: 0.09 stands for a factor of 1.09 either way."""
        return self.high / self.seconds - 1 if self.seconds else 0.0

    def share(self, bound: str) -> float:
        """Part of the time that is bound by ``compute``, ``memory`` or ``launch``."""
        return sum(r.seconds for r in self.rows if r.bound == bound) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Flow:
    """What the graph does not say about its control flow.

    Attributes:
        taken: how often the first branch of a ``cond`` is taken, 0 to 1; ``None``: the slower one always is.
        trips: how often the body of a ``while`` runs.
        live: part of a mask that is true, 0 to 1: of the rows that ``rows`` runs its region on, of what ``nonzero``
            finds; ``None``: all of it.
        per_node: another answer for single nodes, by node.
    """

    taken: float | None = None
    trips: float = 1
    live: float | None = None
    per_node: Mapping[Node, float] = field(default_factory=dict)


def estimate(
    graph: Graph | Plan,
    target: Target,
    sizes: Mapping[str, int],
    flow: Flow | None = None,
    calibration: Calibration | None = None,
) -> Estimate:
    """Predict one call.

    Args:
        graph: a graph, or its plan where many estimates are wanted.
        target: the machine.
        sizes: a size per dim of the graph.
        flow: how often branches and loops run.
        calibration: fitted parameters; the packaged ones when absent.

    Raises:
        UsageError: a size is missing, unknown or outside the bounds of its dim.
    """
    plan = graph if isinstance(graph, Plan) else make_plan(graph)
    _check_sizes(plan, sizes)
    flow = flow or Flow()
    run = _Run(target, _with_counts(plan.graph, sizes, flow), flow, calibration or load_calibration())
    rows = run.block(plan.body)
    seconds, floor = sum(r.seconds for r in rows), sum(r.floor for r in rows)
    peak = run.size(plan.weight_bytes) + sum(map(run.size, plan.input_bytes)) + run.peak(plan.body)
    return Estimate(
        target=target.name,
        sizes=dict(sizes),
        seconds=seconds,
        low=sum(max(r.floor, r.seconds / (1 + r.trust.error)) for r in rows),
        high=sum(r.seconds * (1 + r.trust.error) for r in rows),
        floor=floor,
        flops=round(sum(r.flops * r.times for r in rows)),
        bytes=round(sum(r.bytes * r.times for r in rows)),
        weight_bytes=run.size(plan.weight_bytes),
        peak_bytes=peak,
        fits=peak <= USABLE_MEMORY * target.memory,
        kernels=round(run.launches),
        tier=_tier(rows),
        rows=tuple(rows),
        notes=tuple(dict.fromkeys([*([target.note] if target.note else []), *_unknown(plan), *run.notes])),
    )


def _check_sizes(plan: Plan, sizes: Mapping[str, int]) -> None:
    dims = plan.graph.dims
    for name, size in sizes.items():
        if name in dims and size not in dims[name]:
            raise UsageError(f"{name} = {size} is outside the range {dims[name]} of that dim")
        if name not in dims and not is_data_symbol(name):
            told = ", ".join(f"{n} {r}" for n, r in dims.items()) or "none: every size is fixed"
            raise UsageError(f"the model has no dim named {name!r}", hint=f"its dims: {told}")
    if missing := [f"{name} {bounds}" for name, bounds in dims.items() if name not in sizes]:
        raise UsageError(f"no size for {', '.join(missing)}", hint=f"--size {missing[0].split()[0]}=N")


def _with_counts(graph: Graph, sizes: Mapping[str, int], flow: Flow) -> dict[str, int]:
    """The sizes, and those that count what is true of a mask, outer before inner: all of it, unless told a part."""
    known = dict(sizes)
    for node in graph.walk():
        mask = groups(node)[0] if node.op is ROWS else _mask(node)
        if mask is None or not symbols_of(mask.tensor.numel) <= known.keys():
            continue  # it depends on the data itself, or a size is missing: told where it is read
        names = {rows_symbol(node)} if node.op is ROWS else _first_sizes(node)
        most = evaluate(mask.tensor.numel, known)
        part = flow.per_node.get(node, 1.0 if flow.live is None else flow.live)
        for name in names:
            known.setdefault(name, min(most, math.ceil(most * part)))
    return known


def _mask(node: Node) -> Value | None:
    """The mask whose true elements a node picks, or lists."""
    if node.op.name in ("aten.nonzero.default", "aten.where.default", "aten.nonzero_numpy.default"):
        return node.operands[0]
    if node.op.name in ("aten.index.Tensor", "aten.masked_select.default"):
        return next((v for v in node.operands[1:] if v.tensor.dtype is torch.bool), None)
    return None


def _first_sizes(node: Node) -> set[str]:
    dims = [v.type.shape[0] for v in node.results if isinstance(v.type, TensorType) and v.type.rank]
    return {d.name for d in dims if not isinstance(d, int) and d.is_Symbol and is_data_symbol(d.name)}


def _unknown(plan: Plan) -> Iterable[str]:
    names = Counter(
        step.nodes[-1].op.name
        for step in plan.body.every_step()
        if step.kernel is not None and any(p.kind == "unknown" for p in step.kernel.prices)
    )
    if names:
        told = ", ".join(f"{name} ({count})" for name, count in names.most_common(5))
        yield f"priced by their bytes only: {told}"


def _tier(rows: Iterable[Row]) -> str:
    by_tier = dict.fromkeys(TIERS, 0.0)
    for row in rows:
        by_tier[row.trust.tier] += row.seconds
    covered, total = 0.0, sum(by_tier.values())
    for tier in TIERS:
        covered += by_tier[tier]
        if total and covered >= _TIER_SHARE * total:
            return tier
    return "datasheet"


class _Run:
    """One evaluation: equal kernels are timed once, equal dims are evaluated once."""

    def __init__(self, target: Target, sizes: Mapping[str, int], flow: Flow, calibration: Calibration) -> None:
        self._target, self._sizes, self._flow, self._known = target, sizes, flow, calibration
        self._dims: dict[Dim, int] = {}
        self._times: dict[int, Timing] = {}
        self.notes: list[str] = []
        self.launches = 0.0

    def size(self, dim: Dim) -> int:
        if isinstance(dim, int):
            return dim
        if dim not in self._dims:
            try:
                self._dims[dim] = evaluate(dim, self._sizes)
            except KeyError as error:
                name = str(error.args[0])
                what = f"the size {name} depends on the data" if is_data_symbol(name) else f"no size for {name}"
                raise UsageError(what, hint=f"--size {name}=N") from error
        return self._dims[dim]

    def peak(self, block: BlockPlan) -> int:
        """Most bytes that a block holds at once, its arguments not counted."""
        live = most = 0
        for allocated, freed, inside in block.memory:
            within = max((self.peak(region) for region in inside), default=0)
            made = sum(map(self.size, allocated))
            most = max(most, live + max(made, within))
            live += made - sum(map(self.size, freed))
        return most

    def block(self, block: BlockPlan, times: float = 1.0) -> list[Row]:
        rows: list[Row] = []
        for step in block.steps:
            if step.inside:
                rows += self._regions(step, times)
            elif step.kernel is not None:
                rows.append(self._row(step, step.kernel, times))
                self.launches += step.kernel.launches * times
        return rows

    def _row(self, step: Step, kernel: Kernel, times: float) -> Row:
        if id(kernel) not in self._times:  # the plan keeps kernels alive, so ids are unique
            self._times[id(kernel)] = time_kernel(kernel, self._target, self._known, self.size)
        t = self._times[id(kernel)]
        if t.note:
            self.notes.append(t.note)
        ops = "+".join(_short(node) for node in step.nodes)
        origin = str(step.nodes[0].origin)
        return Row(ops, origin, t.seconds * times, times, t.bound, t.flops, t.bytes, t.floor * times, t.trust)

    def _regions(self, step: Step, times: float) -> list[Row]:
        node = step.nodes[0]
        decision = _DECISION if self._target.kind == "gpu" else 0.0
        given = self._flow.per_node.get(node)
        if node.op is COND:
            taken = given if given is not None else self._flow.taken
            if taken is None:
                before = self.launches
                sides = []
                for region in step.inside:
                    self.launches = before
                    sides.append((self.block(region, times), self.launches))
                rows, self.launches = max(sides, key=lambda side: sum(r.seconds for r in side[0]))
                self.notes.append("cond: the slower branch is taken to run always")
            else:
                rows = [
                    r
                    for side, p in zip(step.inside, (taken, 1 - taken), strict=True)
                    for r in self.block(side, times * p)
                ]
            decisions = times
        elif node.op is ROWS:
            assert step.kernel is not None
            rows = [self._row(step, step.kernel, times), *self.block(step.inside[0], times)]
            self.launches += step.kernel.launches * times
            decisions = times
            if given is None and self._flow.live is None:
                self.notes.append("rows: every row is taken to be alive")
        else:
            trips = given if given is not None else self._flow.trips
            test, body = step.inside
            rows = self.block(test, times * (trips + 1)) + self.block(body, times * trips)
            decisions = times * (trips + 1)
            if given is None:
                self.notes.append(f"while: {trips:g} trip(s) assumed")
        if decision:
            trust = Trust("prior", 1.0)
            rows.append(
                Row(
                    node.op.name,
                    str(node.origin),
                    decision * decisions,
                    decisions,
                    "launch",
                    0,
                    0,
                    0.0,
                    trust,
                )
            )
        return rows


def _short(node: Node) -> str:
    parts = node.op.name.split(".")
    return parts[1] if len(parts) == 3 else node.op.name
