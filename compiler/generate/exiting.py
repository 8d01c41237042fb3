"""Whether the first layers may write tokens alone, and from which probability on: a threshold for a budget.

The traces are those of drafting: at each position of texts that the model wrote itself, how sure the first layers are,
and whether they say what it says. One half of the texts chooses the threshold, the other is held out. A batch decodes
in step: where one of its rows is not sure all layers run, so the more rows, the less exits pay. Both are walked through
with measured times, for one row and for several; that exits do not pay is one of the answers (the U-shape: they cost
the first layers' head at each token, and a run of all layers whenever somebody needs it).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.artifact.generation import NEVER
from compiler.generate.drafting import LEAST_GAIN, Costs, Trace

ROWS = (1, 8)
"""Sizes of batches that are priced."""
_Z = 1.645
"""Standard errors of a one-sided bound of 95 %."""


@dataclass(frozen=True)
class TokenExits:
    """What was found.

    Attributes:
        threshold: least probability of the likeliest token; above 1: none leaves.
        rows: the largest batch that was priced and in which exits pay; 0: in none.
        gains: times as fast as plain decoding, by rows, as simulated.
        left: share of held-out tokens that leave.
        wrong: share of held-out tokens that leave and are not the model's own.
        bound: what ``wrong`` is below, with 95 % confidence.
        why: of a threshold above 1.
    """

    threshold: float
    rows: int
    gains: Mapping[int, float]
    left: float
    wrong: float
    bound: float
    why: str = ""

    def text(self) -> str:
        """One line."""
        gains = ", ".join(f"{gain:.2f}x with {rows} row{'s' * (rows > 1)}" for rows, gain in self.gains.items())
        if self.threshold > 1:
            return f"no exits per token: {self.why}" + (f" ({gains})" if gains else "")
        return (
            f"from a probability of {self.threshold:.3f} on the first layers write {self.left:.0%} of held-out tokens "
            f"alone, {self.wrong:.2%} of all not the model's own; expected {gains}"
        )

    def plain(self) -> dict[str, Any]:
        """For the report."""
        return {
            "threshold": self.threshold, "rows": self.rows, "gains": {str(n): g for n, g in self.gains.items()},
            "left": self.left, "wrong": self.wrong, "bound": self.bound, "why": self.why,
        }  # fmt: skip


def plan_exits(traces: Sequence[Trace], costs: Mapping[int, Costs], budget: float) -> TokenExits:
    """Choose a threshold.

    Args:
        traces: of texts, two or more; every other one is held out.
        costs: measured, by the number of rows.
        budget: share of all tokens that may be other than the model's own.
    """
    chosen_on, held_out = traces[::2], traces[1::2]
    if not held_out:
        return TokenExits(NEVER, 0, {}, 0.0, 0.0, 0.0, "one text is too few: none is left to hold out")
    threshold = choose_threshold(chosen_on, budget)
    if threshold > 1:
        told = f"no probability keeps {budget:.2%} of {_count(chosen_on)} tokens"
        return TokenExits(NEVER, 0, {}, 0.0, 0.0, 0.0, told)
    gains = {n: gain_of_exits(held_out, c, threshold, n) for n, c in costs.items() if n <= len(held_out)}
    left, wrong = counted(held_out, threshold)
    count = max(1, _count(held_out))
    rows = max((n for n, gain in gains.items() if gain >= LEAST_GAIN), default=0)
    found = TokenExits(threshold, rows, gains, left / count, wrong / count, upper(wrong, count))
    if wrong / count - _Z * (budget * (1 - budget) / count) ** 0.5 > budget:
        why = f"{wrong / count:.2%} of held-out tokens are wrong, more than {budget:.2%}"
    elif not rows:
        why = "they do not pay"
    else:
        return found
    return TokenExits(NEVER, 0, gains, found.left, found.wrong, found.bound, why)


def choose_threshold(traces: Sequence[Trace], budget: float) -> float:
    """The least probability down to which the bound on wrong tokens holds the budget; above 1 where none does."""
    seen = sorted(((s, ok) for t in traces for s, ok in zip(t.sure, t.stands, strict=True)), reverse=True)
    found, wrong = NEVER, 0
    for sure, group in itertools.groupby(seen, key=lambda one: one[0]):
        wrong += sum(not ok for _, ok in group)
        if upper(wrong, len(seen)) > budget:
            break
        found = sure
    return found


def counted(traces: Sequence[Trace], threshold: float) -> tuple[int, int]:
    """How many tokens leave, and how many of these are wrong."""
    left = [ok for t in traces for s, ok in zip(t.sure, t.stands, strict=True) if s >= threshold]
    return len(left), sum(not ok for ok in left)


def upper(wrong: int, count: int) -> float:
    """What a share is below with 95 % confidence (Wilson's interval)."""
    if not count:
        return 1.0
    share, part = wrong / count, _Z * _Z / count
    return (share + part / 2 + _Z * (share * (1 - share) / count + part / count / 4) ** 0.5) / (1 + part)


def gain_of_exits(traces: Sequence[Trace], costs: Costs, threshold: float, rows: int) -> float:
    """Times as fast as plain decoding, so many texts at a time, the fill being ``recompute``."""
    spent = plain = 0.0
    for start in range(0, len(traces) - rows + 1, rows):
        pending = 0
        for sure in zip(*(t.sure for t in traces[start : start + rows]), strict=False):
            pending += 1
            spent += costs.draft
            plain += costs.decode
            if min(sure) < threshold:
                spent += costs.verifying(pending)
                pending = 0
    return plain / spent if spent else 1.0


def _count(traces: Sequence[Trace]) -> int:
    return sum(len(t.sure) for t in traces)
