"""Gates: a linear look at an exit's features that says whether its answer will do (exit layers of PALBERT, 2204.03276).

Logistic regression with a quadratic penalty, chosen by cross-validation inside the fit part; frozen model, no labels of
the task: a row is positive where the exit's answer keeps to the budget against all blocks. Whether gates are used at
all is decided on the threshold part, where the plan by gates must be cheaper than the plan by the plain score, and each
gate must order the rows better than one that was fitted to shuffled positives.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Gate = tuple[Tensor, Tensor]
"""Weight [width] and bias [], before the sigmoid."""
PENALTIES = (1e-1, 1e-2, 1e-3)
FOLDS = 3
_NEWTON = 25


@dataclass(frozen=True)
class Gated:
    """Fitted gates, and what is to be disclosed of them.

    Attributes:
        gates: one per exit; empty where some exit has none.
        disclosure: per exit: penalty, rows, positives, and the area under the curve with that of the control.
        why: why there are none.
    """

    gates: Mapping[int, Gate] = field(default_factory=dict)
    disclosure: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


def fit_gates(
    features: Mapping[int, Tensor], good: Mapping[int, Tensor], seen: Mapping[int, Tensor],
    judged: Mapping[int, Tensor], seconds: float, seed: int = 0,
) -> Gated:  # fmt: skip
    """Fit a gate per exit.

    Args:
        features: of each exit on rows of the fit part, [n, width].
        good: bool [n]: whether the exit's answer does there.
        seen: features on the threshold part.
        judged: as ``good``, there.
        seconds: after which what is left is not fitted, and there are no gates.
        seed: of folds and of the control.
    """
    deadline = time.monotonic() + seconds
    gates: dict[int, Gate] = {}
    told: list[dict[str, Any]] = []
    for exit_, x in features.items():
        y = good[exit_].double()
        positive = int(y.sum())
        if min(positive, len(y) - positive) < FOLDS:
            return Gated(why=f"exit {exit_}: {positive} of {len(y)} rows will do, which teaches a gate nothing")
        if time.monotonic() > deadline:
            return Gated(why=f"gates were not all fitted within {seconds:g} s")
        gate, penalty = _chosen(x.double(), y, seed)
        mixed = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
        control = logistic(x.double(), mixed, penalty)
        area, chance = (auc(_says(g, seen[exit_]), judged[exit_]) for g in (gate, control))
        told.append({"exit": exit_, "penalty": penalty, "rows": len(y), "positive": positive, "auc": area,
                     "random": chance})  # fmt: skip
        if not area > chance:
            return Gated({}, {"exits": told}, f"the gate of exit {exit_} orders rows no better than a random one")
        gates[exit_] = (gate[0].float(), gate[1].float())
    parameters = sum(w.numel() + 1 for w, _ in gates.values())
    return Gated(gates, {"exits": told, "parameters": parameters, "seed": seed})


def logistic(x: Tensor, y: Tensor, penalty: float) -> Gate:
    """The gate of least cross entropy on rows x [n, width], y [n] in 0..1; float64, convex, so the result is one.

    The penalty is on the squares of the weights of features scaled to unit variance, per row.
    """
    mean, spread = x.mean(0), x.std(0).clamp_min(1e-9)
    even = torch.cat([(x - mean) / spread, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    penalties = torch.full((even.shape[1],), 2 * penalty, dtype=torch.float64)
    penalties[-1] = 0.0  # the bias is free
    found = torch.zeros(even.shape[1], dtype=torch.float64)

    def loss(at: Tensor) -> float:
        lost = torch.nn.functional.binary_cross_entropy_with_logits(even @ at, y)
        return float(lost + (penalties * at.square()).sum() / 2)

    before = loss(found)
    for _ in range(_NEWTON):
        p = (even @ found).sigmoid()
        slope = even.T @ (p - y) / len(y) + penalties * found
        bend = (even * (p * (1 - p))[:, None]).T @ even / len(y) + torch.diag(penalties + 1e-9)
        step = torch.linalg.solve(bend, slope)
        while (after := loss(found - step)) > before and step.abs().max() > 1e-9:
            step = step / 2
        found, gained, before = found - step, before - after, after
        if gained < 1e-9:
            break
    plain = found[:-1] / spread
    return plain, found[-1] - plain @ mean


def _chosen(x: Tensor, y: Tensor, seed: int) -> tuple[Gate, float]:
    fold = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)) % FOLDS

    def left_out(penalty: float) -> float:
        lost = 0.0
        for at in range(FOLDS):
            weight, bias = logistic(x[fold != at], y[fold != at], penalty)
            logits = x[fold == at] @ weight + bias
            lost += float(torch.nn.functional.binary_cross_entropy_with_logits(logits, y[fold == at], reduction="sum"))
        return lost

    best = min(PENALTIES, key=left_out)
    return logistic(x, y, best), best


def gate_scores(gate: Gate, x: Tensor) -> Tensor:
    """What the graph's score of a gate is, float32 [n]; features x [n, width]."""
    return torch.nn.functional.linear(x.float(), gate[0][None], gate[1].reshape(1)).sigmoid()[:, 0]


def _says(gate: Gate, x: Tensor) -> Tensor:
    return x.double() @ gate[0].double() + gate[1].double()


def auc(scores: Tensor, good: Tensor) -> float:
    """Probability that a good row scores above a bad one, ties half; 0.5 where there is only one kind."""
    positive, negative = scores[good].sort().values, scores[~good]
    if not len(positive) or not len(negative):
        return 0.5
    above = len(positive) - torch.searchsorted(positive, negative, right=True)
    equal = torch.searchsorted(positive, negative, right=True) - torch.searchsorted(positive, negative)
    return float((above + 0.5 * equal).sum() / (len(positive) * len(negative)))
