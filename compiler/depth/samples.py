"""What is refused as samples to calibrate exits on: too few of them, and random ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from compiler.depth.traces import Floats, Traces
from ir.errors import UsageError

LEAST_FIT, LEAST_THRESHOLD, LEAST_REPORT = 100, 50, 50
"""Rows of each part, 200 in all (techniques.md 5.2)."""


def check_counts(fit: int, threshold: int, report: int) -> None:
    """Refuse too few samples.

    Raises:
        UsageError: with the numbers there are, and those needed.
    """
    if fit < LEAST_FIT or threshold < LEAST_THRESHOLD or report < LEAST_REPORT:
        raise UsageError(
            f"exits need samples: {fit} rows to fit maps, {threshold} to set thresholds, {report} to report, "
            f"where {LEAST_FIT}, {LEAST_THRESHOLD} and {LEAST_REPORT} are the least",
            hint="give more calibration inputs of your own; about 500 rows bound a loss of 1 %",
        )


_EVEN = 1.5
"""Times as likely as in an even spread that two tokens are equal: texts are far above it, in any vocabulary."""
_PAIRS = 200
_LEAST_CORRELATION = 0.1
"""Of scores with quality: less orders the rows too little to part them."""


def check_tokens(samples: Sequence[Mapping[str, Tensor]]) -> None:
    """Refuse token numbers that were drawn at random: whatever thresholds they give would not hold in use.

    Raises:
        UsageError: the tokens of an input are spread evenly over all numbers up to the largest.
    """
    for name in sorted({n for s in samples for n, t in s.items() if t.dtype == torch.int64 and t.ndim == 2}):
        tokens = torch.cat([s[name].flatten() for s in samples if name in s])
        tokens = tokens[tokens != 0]  # paddings
        if not len(tokens) or int(tokens.min()) < 0:
            continue
        counts = tokens.bincount().double()
        equal, pairs, span = float((counts * (counts - 1)).sum()), len(tokens) * (len(tokens) - 1), int(tokens.max())
        if span > 8 and pairs / span > _PAIRS and equal / pairs * span < _EVEN:
            raise UsageError(
                f"the samples of {name} look random: {len(tokens)} numbers spread evenly over 1..{span}",
                hint="exits are calibrated on inputs like those in use; a text repeats its words",
            )


def check_scores(traces: Traces, score: str) -> None:
    """Refuse samples on which no exit's score tells what leaving there loses: no threshold on it can hold a budget.

    The measure is Spearman's rank correlation of scores with quality, minus the loss. One exit where it is above
    ``_LEAST_CORRELATION`` and what chance gives (one-sided, 95 %, shared out among the exits) is enough; so is one
    where all rows lose the same.

    Raises:
        UsageError: with the correlation at each exit.
    """
    found = [-rank_correlation(s, lost) for s, lost in zip(traces.scores.T, traces.losses.T, strict=True)]
    chance = NormalDist().inv_cdf(1 - 0.05 / len(found)) / math.sqrt(max(len(traces) - 1, 1))
    if any(np.isnan(found)) or max(found) > max(chance, _LEAST_CORRELATION):
        return
    told = ", ".join(f"{rho:.2f} after {layer}" for layer, rho in zip(traces.layers, found, strict=True))
    raise UsageError(
        f"on {len(traces)} samples the {score} of an exit's answer does not tell how good it is: "
        f"their rank correlation is {told} blocks",
        hint="random samples look so, and models that no exit suits; give inputs like those in use",
    )


def rank_correlation(a: Floats, b: Floats) -> float:
    """Spearman's, equal values sharing the mean of their ranks; NaN where all of one are equal."""
    first, second = _ranks(a), _ranks(b)
    known = first.std() > 0 and second.std() > 0
    return float(np.corrcoef(first, second)[0, 1]) if known else float("nan")


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse], np.float64)
