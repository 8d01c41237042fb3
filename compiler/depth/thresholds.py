"""Thresholds for a budget: least expected cost while the mean loss stays within it.

One descent finds all of them. It begins with thresholds that no score reaches (all blocks, no loss) and lowers one at
a time, always that which saves most per predicted loss, until every row leaves at the first exit. Along it each row
only ever leaves earlier, so cost falls monotonely, and a point of it is one number: the *effort* from 1 (all blocks) to
0 (the first exit). A budget is tested along the descent in that order, with a one-sided bound, up to the first failure.

Fractions (``by_fractions``): Dynamic Perceiver (arXiv 2306.11248), given shares of rows per exit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compiler.depth.traces import Floats, Ints, Traces
from ir.errors import UsageError

LEVELS = 48
"""Candidate thresholds per exit, at equal shares of the samples."""
SURE = 1.645
"""Standard errors above the mean: one-sided, 95 %."""
EFFORTS = tuple(round(0.05 * n, 2) for n in range(21))


@dataclass(frozen=True, eq=False)
class Descent:
    """Thresholds from "never leave" to "always leave at the first exit".

    Attributes:
        thresholds: [points, exits], each column falling.
        costs: expected cost at each point, falling.
        losses, bounds: mean loss, and what it is below with 95 % confidence.
        depths: expected number of blocks.
    """

    thresholds: Floats
    costs: Floats
    losses: Floats
    bounds: Floats
    depths: Floats

    def within(self, budget: float) -> int:
        """The last point before the bound first exceeds the budget; 0 when not even the first step fits."""
        over = np.flatnonzero(self.bounds > budget)
        return max(0, int(over[0]) - 1) if len(over) else len(self.bounds) - 1

    def at_cost(self, cost: float) -> int:
        """The first point that costs no more."""
        return int(np.argmax(self.costs <= cost + 1e-12)) if self.costs[-1] <= cost + 1e-12 else len(self.costs) - 1


def upper_bound(losses: Floats, worst: float, sure: float = SURE) -> float:
    """What the mean of all rows lies below, from a sample of them; one-sided.

    One more row of the largest loss there is, ``worst``, is thought to be there: a sample without any loss does not
    prove that there is none.
    """
    padded = np.append(losses, worst)
    return float(padded.mean() + sure * padded.std(ddof=1) / math.sqrt(len(padded)))


def descend(traces: Traces, costs: Sequence[float] | None = None, levels: int = LEVELS, sure: float = SURE) -> Descent:
    """The descent.

    Args:
        traces: of the threshold part.
        costs: of leaving at each exit and of running everything, ascending; the numbers of blocks when absent.
        levels: candidate thresholds per exit.
        sure: standard errors of the bound.
    """
    price = np.asarray(costs if costs is not None else [*traces.layers, traces.blocks], np.float64)
    exits = len(traces.layers)
    if price.shape != (exits + 1,):
        raise UsageError(f"{exits} exits and all blocks need {exits + 1} costs, not {price.shape}")
    ladders = [_candidates(traces.scores[:, e], levels) for e in range(exits)]
    expected = np.concatenate([np.stack([isotonic(traces.scores[:, e], traces.losses[:, e]) for e in range(exits)], 1),
                               np.zeros((len(traces), 1))], 1)  # fmt: skip
    worst = traces.worst
    at = np.zeros(exits, np.int64)
    path = [np.array([ladder[0] for ladder in ladders])]
    taken = traces.taken(path[0])
    rows = np.arange(len(traces))
    while taken.any():
        best: tuple[float, int, int, Ints] | None = None
        for e in range(exits):
            for step in (1, 2, 4, 8):
                to = min(int(at[e]) + step, len(ladders[e]) - 1)
                moved = np.where((traces.scores[:, e] >= ladders[e][to]) & (taken > e), e, taken)
                saved = float((price[taken] - price[moved]).sum())
                if saved <= 0:
                    continue
                lost = float((expected[rows, moved] - expected[rows, taken]).sum())
                rate = saved / max(lost, 1e-9 * worst + 1e-300)
                if best is None or rate > best[0]:
                    best = (rate, e, to, moved)
        if best is None:  # what is left costs nothing more than the first exit
            break
        _, e, to, taken = best
        at[e] = to
        path.append(np.array([ladder[n] for ladder, n in zip(ladders, at, strict=True)]))
    path.append(np.full(exits, -np.inf))
    return _measured(traces, np.stack(path), price, sure)


def _measured(traces: Traces, path: Floats, price: Floats, sure: float) -> Descent:
    losses = [traces.lost(point) for point in path]
    bounds = [
        upper_bound(lost, traces.worst, sure) if n else 0.0 for n, lost in enumerate(losses)
    ]  # the first is exact
    return Descent(
        path,
        np.array([price[traces.taken(point)].mean() for point in path]),
        np.array([lost.mean() for lost in losses]),
        np.array(bounds),
        np.array([traces.depths(point).mean() for point in path]),
    )


def _candidates(scores: Floats, levels: int) -> Floats:
    """Falling thresholds: none, some between neighbouring scores that share out the rows, all.

    Between scores, so that another kernel's rounding moves no row across; equal scores stay together.
    """
    known = np.unique(scores)
    between = (known[1:] + known[:-1]) / 2
    if len(between) > levels:
        wanted = np.quantile(scores, np.linspace(0, 1, levels + 2)[1:-1])
        between = between[np.unique(np.searchsorted(between, wanted).clip(0, len(between) - 1))]
    return np.concatenate([[np.inf], between[::-1].astype(np.float32).astype(np.float64), [-np.inf]])


def isotonic(scores: Floats, losses: Floats) -> Floats:
    """Expected loss of each row given its score: the falling step function of least squares (pool adjacent violators).

    It keeps the descent from following the luck of single rows.
    """
    order = np.argsort(-scores, kind="stable")
    known, inverse = np.unique(-scores[order], return_inverse=True)
    counts = np.bincount(inverse, minlength=len(known)).astype(np.float64)
    sums = np.bincount(inverse, losses[order], minlength=len(known))
    blocks: list[list[float]] = []  # sum, count, distinct scores; means must rise as scores fall
    for total, count in zip(sums, counts, strict=True):
        blocks.append([float(total), float(count), 1])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    level = np.repeat([b[0] / b[1] for b in blocks], [int(b[2]) for b in blocks])
    found = np.empty(len(scores))
    found[order] = level[inverse]
    return found


def by_fractions(scores: Floats, fractions: Sequence[float]) -> Floats:
    """Thresholds at which these shares of all rows leave at each exit, rows that share a score together.

    Args:
        scores: [samples, exits].
        fractions: per exit, 0 or more; together at most 1. What is left runs all blocks.

    Raises:
        UsageError: shares that are no shares.
    """
    shares = np.asarray(fractions, np.float64)
    if shares.shape != (scores.shape[1],) or not np.isfinite(shares).all() or (shares < 0).any():
        raise UsageError(f"fractions are one share of 0 or more per exit ({scores.shape[1]}), not {list(fractions)}")
    if shares.sum() > 1 + 1e-9:
        raise UsageError(f"the fractions add up to {shares.sum():g}, more than 1")
    left = np.ones(len(scores), bool)
    found = np.full(scores.shape[1], np.inf)
    for e, share in enumerate(shares):
        count = int(len(scores) * share + 1e-9)
        ordered = np.sort(scores[left, e])[::-1]
        if count and len(ordered):
            found[e] = ordered[min(count, len(ordered)) - 1]
            left &= scores[:, e] < found[e]
    return found


# --- effort ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EffortGrid:
    """Thresholds by effort; between two grid points every threshold is interpolated.

    Attributes:
        efforts: ascending, the first 0 (the first exit at once), the last 1 (all blocks, exactly).
        thresholds: [efforts, exits], each column rising.
    """

    efforts: tuple[float, ...]
    thresholds: Floats

    def __post_init__(self) -> None:
        """Check the form.

        Raises:
            UsageError: efforts or thresholds out of order, or not from 0 to 1.
        """
        if len(self.efforts) < 2 or self.efforts[0] != 0 or self.efforts[-1] != 1 or not _rises(self.efforts):
            raise UsageError(f"efforts {self.efforts} do not rise from 0 to 1")
        if self.thresholds.ndim != 2 or len(self.thresholds) != len(self.efforts):
            raise UsageError(f"thresholds {self.thresholds.shape} are not one row per effort ({len(self.efforts)})")
        if np.isnan(self.thresholds).any() or (self.thresholds[1:] < self.thresholds[:-1]).any():
            raise UsageError("thresholds do not rise with the effort")
        if not (self.thresholds[-1] == np.inf).all() or self.thresholds[0, 0] != -np.inf:
            raise UsageError("effort 1 must run all blocks (inf), effort 0 must leave at the first exit (-inf)")

    def at(self, effort: float) -> Floats:
        """Thresholds for an effort; where a neighbour is infinite, those of the greater effort.

        Raises:
            UsageError: the effort is not within 0 and 1.
        """
        if isinstance(effort, bool) or not isinstance(effort, (int, float)) or not 0 <= effort <= 1:
            raise UsageError(f"effort is {effort!r}, not a number from 0 to 1", hint="1 runs all blocks, exactly")
        above = int(np.searchsorted(self.efforts, effort))
        if self.efforts[above] == effort:
            return self.thresholds[above].copy()
        low, high = self.thresholds[above - 1], self.thresholds[above]
        part = (effort - self.efforts[above - 1]) / (self.efforts[above] - self.efforts[above - 1])
        finite = np.isfinite(low) & np.isfinite(high)
        with np.errstate(invalid="ignore"):
            return np.where(finite, low + part * (high - low), high)


def _rises(values: Sequence[float]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))


def effort_grid(descent: Descent, efforts: Sequence[float] = EFFORTS) -> EffortGrid:
    """Effort ``e`` costs ``e`` of the way from the cheapest point to all blocks, as nearly as the descent has it."""
    low, high = float(descent.costs[-1]), float(descent.costs[0])
    rows = [descent.thresholds[descent.at_cost(low + e * (high - low))] for e in efforts]
    rows[0], rows[-1] = descent.thresholds[-1], descent.thresholds[0]
    return EffortGrid(tuple(efforts), np.stack(rows))


# --- telling ---------------------------------------------------------------------------------------------------------


def histogram(traces: Traces, thresholds: Floats) -> tuple[int, ...]:
    """Rows that leave at each exit; the last number: rows that run all blocks."""
    return tuple(int(n) for n in np.bincount(traces.taken(thresholds), minlength=len(traces.layers) + 1))


@dataclass(frozen=True, slots=True)
class Quality:
    """What thresholds do to some samples: mean loss and its bound, mean blocks and the 95th percentile of them."""

    samples: int
    loss: float
    bound: float
    depth: float
    p95: float


def quality(traces: Traces, thresholds: Floats) -> Quality:
    """What thresholds do to the samples of some traces."""
    lost, depths = traces.lost(thresholds), traces.depths(thresholds)
    full = bool((depths == traces.blocks).all())
    bound = 0.0 if full else upper_bound(lost, traces.worst)
    p95 = float(np.sort(depths)[math.ceil(0.95 * len(depths)) - 1])
    return Quality(len(traces), float(lost.mean()), bound, float(depths.mean()), p95)


def oracle_depth(traces: Traces, budget: float) -> float:
    """Mean blocks if every row left at the first exit where it loses no more than the budget: no score does better."""
    good = np.concatenate([traces.losses <= budget, np.ones((len(traces), 1), bool)], 1)
    return float(np.array([*traces.layers, traces.blocks])[good.argmax(1)].mean())


def curve(traces: Traces, grid: EffortGrid) -> list[dict[str, float]]:
    """Quality against compute: effort, expected depth and mean loss, on samples that set no threshold."""
    found = [(effort, quality(traces, row)) for effort, row in zip(grid.efforts, grid.thresholds, strict=True)]
    return [{"effort": effort, "depth": q.depth, "loss": q.loss} for effort, q in found]
