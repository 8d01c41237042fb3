"""Do exits pay? Expected time of batches from the samples' own exits, with the cost model's prices.

Three things decide, beside the depth: what a check costs (it may read a whole vocabulary matrix), how a block's time
falls with the live rows (hardly, while it is bound by reading its weights), and whether a batch is compacted. So gains
first fall with the batch and, compacted, rise again: a U. The answer may be "no exits here". Time is not linear in the
rows, hence batches are drawn from the traces (rows of one batch as they come together), never averaged before pricing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from compiler.depth.thresholds import LEVELS, Descent, descend
from compiler.depth.traces import Floats, Traces

BATCHES = (1, 8)
DRAWS = 256
LEAST_GAIN = 1.05
"""Times as fast as all blocks that exits must be expected to run: less drowns in what the model does not know."""
_COARSE = 12
"""Candidate thresholds per exit while exits are chosen; the choice then gets all of them."""
_HALF_SLACK = 1.5
"""Half of the rows bound a loss less closely: the budget while exits are chosen is larger by that."""
_MOST_SUBSETS = 6
"""Exits up to which every choice of them is tried; with more, the least useful are dropped one by one."""


@dataclass(frozen=True)
class Prices:
    """Seconds by number of rows.

    Attributes:
        fixed: what every call runs: embedding and the last tail.
        block: one block.
        check: the answer and the score of one exit.
        gather: picking the live rows and putting results back, where a batch is compacted.
    """

    fixed: Callable[[int], float]
    block: Callable[[int], float]
    check: Callable[[int], float]
    gather: Callable[[int], float]


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Expected seconds of one batch.

    Attributes:
        batch: rows.
        full: all blocks without any exit.
        synchronous: every row runs until the last one leaves.
        compacted: rows that left run nothing.
        all_left: per exit, share of drawn batches of which every row has left there or before.
    """

    batch: int
    full: float
    synchronous: float
    compacted: float
    all_left: tuple[float, ...]

    def gain(self, compacts: bool) -> float:
        """Times as fast as without exits."""
        return self.full / (self.compacted if compacts else self.synchronous)


def expected(
    traces: Traces, thresholds: Floats, prices: Prices, batch: int, draws: int = DRAWS, seed: int = 0
) -> BatchPlan:
    """Expected time of batches that are drawn, with replacement, from the samples."""
    depths = traces.depths(thresholds)
    drawn = depths[np.random.default_rng(seed).integers(len(depths), size=(draws, batch))]
    sizes = range(batch + 1)
    block, check, gather = (_table(f, sizes) for f in (prices.block, prices.check, prices.gather))
    ends = [*traces.layers, traces.blocks]
    synchronous = compacted = np.full(draws, prices.fixed(batch))
    begin, all_left = 0, []
    for end in ends:
        live = (drawn > begin).sum(1)  # rows that run this stretch of blocks
        some = live > 0
        checks = end != traces.blocks
        synchronous = synchronous + some * ((end - begin) * block[batch] + checks * check[batch])
        # the first stretch has every row, and nothing to pick
        moved = gather[live] if begin else 0.0
        compacted = compacted + (end - begin) * block[live] + checks * check[live] + moved
        if checks:
            all_left.append(float((drawn <= end).all(1).mean()))
        begin = end
    full = prices.fixed(batch) + traces.blocks * block[batch]
    return BatchPlan(batch, float(full), float(synchronous.mean()), float(compacted.mean()), tuple(all_left))


def _table(price: Callable[[int], float], sizes: Sequence[int]) -> Floats:
    return np.array([price(n) if n else 0.0 for n in sizes], np.float64)


@dataclass(frozen=True, eq=False)
class DepthPlan:
    """What was decided.

    Attributes:
        exits: positions of the exits that are worth their check; empty: none.
        descent: thresholds of those exits.
        point: of the descent, within the budget.
        batches: expected times with them.
        why: why there are no exits; empty when there are.
    """

    exits: tuple[int, ...]
    descent: Descent | None
    point: int
    batches: tuple[BatchPlan, ...]
    why: str = ""


def plan(
    traces: Traces,
    prices: Prices,
    budget: float,
    batches: Sequence[int] = BATCHES,
    compacts: bool = True,
    least: float = LEAST_GAIN,
) -> DepthPlan:
    """Choose exits and thresholds for a budget, for the first of the batches; or decline, with the numbers.

    Args:
        traces: of the threshold part.
        prices: seconds by rows.
        budget: largest mean loss.
        batches: sizes to price; the first decides.
        compacts: whether rows that left run nothing.
        least: gain below which exits are not worth it.
    """
    best: tuple[float, tuple[int, ...]] | None = None
    half = traces.rows(np.arange(0, len(traces), 2))  # choosing among many on all rows would be luck on those rows
    for exits in _choices(half, prices, budget, batches[0], compacts):
        part = half.only(exits)
        descent, point = _within(part, prices, budget * _HALF_SLACK, _COARSE)
        if not point:
            continue
        gain = expected(part, descent.thresholds[point], prices, batches[0]).gain(compacts)
        if best is None or gain > best[0]:
            best = (gain, exits)
    if best is None:
        return DepthPlan((), None, 0, (), _none_fits(traces, budget))
    exits = best[1]
    part = traces.only(exits)
    descent, point = _within(part, prices, budget)
    told = tuple(expected(part, descent.thresholds[point], prices, n) for n in batches)
    if not point:
        return DepthPlan((), None, 0, (), _none_fits(traces, budget))
    if told[0].gain(compacts) < least:
        layers = ":".join(str(layer) for layer in part.layers)
        numbers = ", ".join(f"{p.gain(compacts):.2f}x at batch {p.batch}" for p in told)
        depth = descent.depths[point]
        why = (
            f"do not insert exits here: the best (after {layers}) are expected to run {numbers}, below {least:g}x: "
            f"{depth:.2f} of {traces.blocks} blocks, a check costs {_share(prices, batches[0]):.0%} of a block"
        )
        return DepthPlan((), descent, point, told, why)
    return DepthPlan(exits, descent, point, told)


def _share(prices: Prices, batch: int) -> float:
    return prices.check(batch) / max(prices.block(batch), 1e-300)


def _within(traces: Traces, prices: Prices, budget: float, levels: int = LEVELS) -> tuple[Descent, int]:
    """A descent by the time of a single row, and its last point within the budget."""
    block, check = prices.block(1), prices.check(1)
    costs = [layer * block + (n + 1) * check for n, layer in enumerate(traces.layers)]
    costs.append(traces.blocks * block + len(traces.layers) * check)
    descent = descend(traces, costs, levels)
    return descent, descent.within(budget)


def _none_fits(traces: Traces, budget: float) -> str:
    last = len(traces.layers) - 1
    descent = descend(traces)
    first = descent.bounds[1] if len(descent.bounds) > 1 else float("inf")
    return (
        f"no threshold keeps the loss within {budget:g}: even the surest rows alone bound it by {first:.3g} only; all "
        f"rows after {traces.layers[last]} of {traces.blocks} blocks would lose {traces.losses[:, last].mean():.3g}"
    )


def _choices(traces: Traces, prices: Prices, budget: float, batch: int, compacts: bool) -> list[tuple[int, ...]]:
    every = tuple(range(len(traces.layers)))
    if len(every) <= _MOST_SUBSETS:
        return [c for n in range(len(every), 0, -1) for c in combinations(every, n)]
    chain = [every]
    while len(chain[-1]) > 1:
        now = chain[-1]
        rest = [tuple(e for e in now if e != out) for out in now]
        chain.append(max(rest, key=lambda exits: _gain(traces.only(exits), prices, budget, batch, compacts)))
    return chain


def _gain(traces: Traces, prices: Prices, budget: float, batch: int, compacts: bool) -> float:
    descent, point = _within(traces, prices, budget, _COARSE)
    return expected(traces, descent.thresholds[point], prices, batch).gain(compacts)
