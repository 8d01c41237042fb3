"""From a graph and samples to exits by which rows leave early within a budget, or the reason why not.

taps on all samples -> maps on the fit part -> thresholds on the threshold part, priced -> judged on the report part
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compiler.cost.cost import estimate
from compiler.cost.targets import Target
from compiler.depth.adapt import SECONDS, Adapted, Map, adapt
from compiler.depth.gates import Gated, fit_gates, gate_scores
from compiler.depth.planner import BATCHES, DepthPlan, Prices, plan
from compiler.depth.samples import check_counts, check_scores, check_tokens
from compiler.depth.tapped import RowQuality, Run, Tapped, loss_kind
from compiler.depth.thresholds import SURE, EffortGrid, curve, effort_grid, histogram, oracle_depth, quality
from compiler.depth.traces import FIT, REPORT, THRESHOLD, Traces, data_digest, parts
from ir import Graph, Value
from ir.copy import copy_graph
from ir.errors import UnsupportedError
from passes.depth import Depth, with_maps
from passes.depth_exits import THRESHOLDS, checked_exits, taps
from passes.depth_parts import take_apart
from passes.depth_scores import GATE

PARTS = ("fit", "threshold", "report")
MOST_EXITS = 6
_CHOOSE = 4
"""One in so many samples of the fit part chooses among maps."""
_GATES_SAVE = 0.98
"""Gates decide where the plan by them takes less than so much of the plan by the plain score."""
Samples = Sequence[Mapping[str, Tensor]]
DEFAULT_SCORES: Mapping[str, str] = {"cosine": "agreement", "agreement": "confidence", "kl": "confidence"}


@dataclass(frozen=True)
class Exits:
    """A calibrated graph's exits: what its artifact says, and what judges an engine.

    Attributes:
        depth: the pass that gives them to the graph.
        section: plain data, the section ``depth`` of a manifest.
        grid: thresholds by effort.
        report: samples of the report part, with what all blocks answer.
        kind: of loss, see ``compiler.depth.tapped.KINDS``.
        quality: the user's own, if there is one.
        budget: largest mean loss.
    """

    depth: Depth
    section: Mapping[str, Any]
    grid: EffortGrid
    report: Sequence[Run]
    kind: str
    quality: RowQuality | None
    budget: float

    def told(self, before: float | None, after: float | None) -> dict[str, Any]:
        """The section, with the user's metric of the original and of the engine where there is one."""
        known = before is not None and after is not None
        return {**self.section, **({"task": {"before": before, "after": after}} if known else {})}


@dataclass(frozen=True)
class Outcome:
    """Exits, or why there are none; ``told`` holds the numbers either way."""

    exits: Exits | None
    why: str = ""
    told: Mapping[str, Any] = field(default_factory=dict)


def calibrate(
    graph: Graph,
    samples: Mapping[str, Samples],
    budget: float,
    target: Target,
    sizes: Mapping[str, int],
    row_quality: RowQuality | None = None,
    score: str = "",
    at: Sequence[int] = (),
    batches: Sequence[int] = BATCHES,
    seconds: float = SECONDS,
    heard: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Exits for a graph, which stays as it is, or why it gets none.

    Args:
        graph: after all passes that move numbers.
        samples: by part, see ``PARTS``.
        budget: largest mean loss on samples like these.
        target: whose prices count.
        sizes: of the dims, for the prices.
        row_quality: the task's; without it the loss is closeness to all blocks.
        score: of ``passes.depth_scores.SCORES``; by the kind of loss when empty.
        at: exits to consider; spread evenly when empty.
        batches: the first decides.
        seconds: for fitting maps.
        heard: hears of progress.

    Raises:
        UsageError: too few samples, random ones, a score or loss that is not finite.
    """
    parts_ = take_apart(graph)
    if isinstance(parts_, str):
        return Outcome(None, f"no exits: {parts_}")
    depth = parts_.depth
    if depth < 2:
        return Outcome(None, "no exits: there is one block")
    at = checked_exits(at or _spread(depth), depth)
    counts = {name: _rows(samples[name], graph) for name in PARTS}
    check_counts(*(counts[name] for name in PARTS))
    check_tokens([s for name in PARTS for s in samples[name]])
    first = score or "confidence"
    try:
        tapped = Tapped(graph, at, first)
        kind = loss_kind(tapped.run(samples["threshold"][:1]), tapped.names)
        first = score or DEFAULT_SCORES["agreement" if row_quality and kind != "cosine" else kind]
        tapped = Tapped(graph, at, first)
    except UnsupportedError as error:
        return Outcome(None, error.what)
    began = time.monotonic()
    runs = {}
    for name in PARTS:
        runs[name] = tapped.run(samples[name])
        heard(f"{name}: {counts[name]} rows at every depth, {time.monotonic() - began:.0f} s")
    fit, chosen_on = _fit_and_choose(runs)
    adapted = _adapt(tapped, fit, chosen_on, kind, at, depth, row_quality, seconds)
    for exit_, why in adapted.why.items():
        heard(f"exit {exit_} keeps no map: {why}")
    bare = {n: tapped.traces(runs[n], kind, row_quality, depth) for n in ("threshold", "report")}
    fitted = {n: tapped.mapped(runs[n], adapted.maps) for n in ("threshold", "report")}
    traces = {n: tapped.traces(r, kind, row_quality, depth) for n, r in fitted.items()}
    prices = prices_of(graph, target, sizes, at, first)
    planned = plan(traces["threshold"], prices, budget, batches)
    lens = plan(bare["threshold"], prices, budget, batches)
    told = _told(planned, lens, traces["threshold"], batches)
    if not planned.exits:
        if planned.descent is None:  # no threshold holds the budget: for want of a score that knows anything?
            check_scores(traces["threshold"], first)
        return Outcome(None, planned.why, told)
    if lens.exits and _seconds(lens) <= _seconds(planned):
        adapted, planned, traces = Adapted({}, {**adapted.disclosure, "kept": False}), lens, bare
    own = chosen_on if adapted.maps else runs["fit"]
    gated = _gate(tapped, own, runs, adapted, kind, depth, row_quality, budget, seconds)
    if gated.gates and not score:
        opened = {n: _by_gates(tapped, runs[n], t, gated) for n, t in traces.items()}
        by_gates = plan(opened["threshold"], prices, budget, batches)
        if by_gates.exits and _seconds(by_gates) < _GATES_SAVE * _seconds(planned):
            first, planned, traces = GATE, by_gates, opened
    heard(f"gates: {gated.why or _gates_told(planned, first)}")
    assert planned.descent is not None
    chosen = planned.descent.thresholds[planned.point]
    report = traces["report"].only(planned.exits)
    held = quality(report, chosen)
    spread = _standard_error(report, chosen)
    if held.loss - SURE * spread > budget:
        lost = f"{held.loss:.3g} (+- {SURE * spread:.2g})"
        why = f"held-out samples lose {lost} where {budget:g} is allowed: exits are dropped"
        return Outcome(None, why, told)
    layers = tuple(at[e] for e in planned.exits)
    grid = effort_grid(planned.descent)
    keep = {e: m for e, m in adapted.maps.items() if e in layers or (e == 0 and first == "agreement")}
    tau = tuple(float(np.float32(t)) for t in chosen)
    gates = {e: gated.gates[e] for e in layers} if first == GATE else {}
    depth_pass = with_maps(Depth(mode="exit", at=layers, score=first, tau=tau), keep, gates)
    section = {
        "criterion": first,
        "exits": list(layers),
        "blocks": depth,
        "efforts": list(grid.efforts),
        "thresholds": [[_plain(t) for t in row] for row in grid.thresholds],
        "default": [_plain(t) for t in chosen],
        "default_effort": _effort_of(planned, chosen),
        "histogram": list(histogram(report, chosen)),
        "curve": curve(report, grid),
        "expected": held.depth,
        "p95": held.p95,
        "loss": held.loss,
        "loss_error": spread,
        "oracle": oracle_depth(traces["report"], budget),
        "budget": budget,
        "metric": "row_quality" if row_quality else kind,
        "samples": counts,
        "threshold_loss": float(planned.descent.losses[planned.point]),
        "threshold_bound": float(planned.descent.bounds[planned.point]),
        "digest": data_digest([s for name in PARTS for s in samples[name]]),
        "planned": told["planned"],
        "adapt": dict(adapted.disclosure),
        "gates": {**gated.disclosure, "kept": first == GATE, **({"why": gated.why} if gated.why else {})},
    }
    return Outcome(
        Exits(depth_pass, section, grid, runs["report"], kind, row_quality, budget), "", {**told, "section": section}
    )


def split_samples(samples: Samples, batched: Sequence[str]) -> dict[str, list[Mapping[str, Tensor]]]:
    """Samples by part, row by row, by the hash of their content (``traces.parts``)."""
    of = parts(samples, batched)
    found: dict[str, list[Mapping[str, Tensor]]] = {name: [] for name in PARTS}
    begin = 0
    for sample in samples:
        rows = len(sample[batched[0]])
        mine = torch.from_numpy(of[begin : begin + rows])
        begin += rows
        for name, part in zip(PARTS, (FIT, THRESHOLD, REPORT), strict=True):
            index = (mine == part).nonzero().squeeze(1)
            if len(index):
                found[name].append({k: v.index_select(0, index) if k in batched else v for k, v in sample.items()})
    return found


def _spread(depth: int) -> tuple[int, ...]:
    count = min(depth - 1, MOST_EXITS)
    return tuple(sorted({int(e) for e in np.linspace(1, depth - 1, count).round()}))


def _rows(samples: Samples, graph: Graph) -> int:
    name = next((n for n, _ in graph.arguments("input")), "")
    return sum(len(s[name]) for s in samples)


def _fit_and_choose(runs: Mapping[str, Sequence[Run]]) -> tuple[Sequence[Run], Sequence[Run]]:
    """Samples that maps are fitted on, and those that choose among them: a quarter of the fit part.

    What sets thresholds has then chosen nothing. With few samples it must do both.
    """
    fit = runs["fit"]
    if len(fit) < 2 * _CHOOSE:
        return fit, runs["threshold"]
    return [r for i, r in enumerate(fit) if i % _CHOOSE], fit[::_CHOOSE]


def _gate(
    tapped: Tapped, own: Sequence[Run], runs: Mapping[str, Sequence[Run]], adapted: Adapted, kind: str,
    depth: int, row_quality: RowQuality | None, budget: float, seconds: float,
) -> Gated:  # fmt: skip
    """Gates on samples that their exits' maps were not fitted to."""
    at = tapped.at
    if tapped.features(own[:1], at[0]).ndim != 2:
        return Gated(why="the tail has no features of one row")
    good = []
    for part in (own, runs["threshold"]):
        losses = tapped.traces(tapped.mapped(part, adapted.maps), kind, row_quality, depth).losses
        good.append({e: torch.from_numpy(losses[:, i] <= budget) for i, e in enumerate(at)})
    seen = [{e: tapped.features(part, e) for e in at} for part in (own, runs["threshold"])]
    return fit_gates(seen[0], good[0], seen[1], good[1], seconds)


def _by_gates(tapped: Tapped, runs: Sequence[Run], traces: Traces, gated: Gated) -> Traces:
    scores = [gate_scores(gated.gates[e], tapped.features(runs, e)) for e in tapped.at]
    return Traces(torch.stack(scores, 1).double().numpy(), traces.losses, traces.layers, traces.blocks)


def _gates_told(planned: DepthPlan, first: str) -> str:
    return "they decide" if first == GATE else f"no cheaper than the {first} of an answer, which decides"


def _adapt(
    tapped: Tapped, fit: Sequence[Run], chosen_on: Sequence[Run], kind: str, at: Sequence[int], depth: int,
    row_quality: RowQuality | None, seconds: float,
) -> Adapted:  # fmt: skip
    target = tapped.features(fit, depth)
    if target.ndim != 2:
        return Adapted({}, {"kept": False, "why": "the tail has no features of one row: exits answer through it bare"})
    answers = tapped.full(fit, tapped.names[0]) if kind != "cosine" else None
    own = {e: tapped.features(fit, e) for e in at}

    def judge(exit_: int, map_: Map | None) -> float:
        found = tapped.mapped(chosen_on, {} if map_ is None else {exit_: map_})
        losses = tapped.traces(found, kind, row_quality, depth).losses
        return float(losses[:, list(at).index(exit_)].mean())

    return adapt(own, target, answers, judge, seconds)


def _seconds(planned: DepthPlan) -> float:
    return planned.batches[0].compacted


def _standard_error(traces: Traces, thresholds: Any) -> float:
    lost = traces.lost(thresholds)
    return float(lost.std(ddof=1) / np.sqrt(len(lost)))


def _effort_of(planned: DepthPlan, chosen: Any) -> float:
    descent = planned.descent
    assert descent is not None
    low, high = float(descent.costs[-1]), float(descent.costs[0])
    return round((float(descent.costs[planned.point]) - low) / max(high - low, 1e-300), 4)


def _told(planned: DepthPlan, lens: DepthPlan, traces: Traces, batches: Sequence[int]) -> dict[str, Any]:
    return {
        "planned": [asdict(p) for p in planned.batches],
        "lens_planned": [asdict(p) for p in lens.batches],
        "mean_losses": [float(x) for x in traces.losses.mean(0)],
    }


def _plain(threshold: float) -> float | str:
    """JSON knows no infinity."""
    return float(threshold) if np.isfinite(threshold) else "inf" if threshold > 0 else "-inf"


def prices_of(graph: Graph, target: Target, sizes: Mapping[str, int], at: Sequence[int], score: str) -> Prices:
    """Prices by the cost model: of a block, of a check, of all else, by the number of rows."""
    apart = take_apart(graph)
    assert not isinstance(apart, str)
    depth = apart.depth
    state: Value = apart.states[0]
    rows = state.tensor.shape[0]
    name = None if isinstance(rows, int) else str(rows)
    one = copy_graph(graph)
    Depth(mode="nested", layers=(1,)).run(one)
    tapped = taps(graph, at, score)
    known: dict[int, tuple[float, float, float]] = {}
    width = int(state.tensor.dtype.itemsize)

    def of(n: int) -> tuple[float, float, float]:
        if n not in known:
            told = {**sizes, **({name: n} if name else {})}
            whole, single, checked = (estimate(g, target, told).seconds for g in (graph, one, tapped))
            block = max((whole - single) / (depth - 1), 1e-12)
            known[n] = (max(whole - depth * block, 0.0), block, max(checked - whole, 0.0) / len(at))
        return known[n]

    def gather(n: int) -> float:
        told = {**sizes, **({name: n} if name else {})}
        shape = [d if isinstance(d, int) else int(d.xreplace({s: told[s.name] for s in d.free_symbols})) for d in
                 state.tensor.shape]  # fmt: skip
        return 4 * width * float(np.prod(shape)) / target.bandwidth

    return Prices(lambda n: of(n)[0], lambda n: of(n)[1], lambda n: of(n)[2], gather)


def setting_of(thresholds: Any) -> dict[str, Tensor]:
    """The setting for a call."""
    return {THRESHOLDS: torch.tensor(np.asarray(thresholds), dtype=torch.float32)}
