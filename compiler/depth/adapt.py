"""Maps in front of the tail, one per exit, fitted so that an exit answers as all blocks would; no labels, frozen model.

Closed form first: ridge regression from the features of an exit to those of the last block, in float64, the penalty
chosen on samples that it was not fitted to. Where the tail after the features is affine (a classifier's head), the map
is also fitted as a head, by the divergence from the full model's probabilities; it is folded back into a map, so that
the tail and the graph stay one. The better of the two on those samples stays, and each exit must beat there no map at
all (logit lens) and a map fitted to other samples' answers (random); else it keeps none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PENALTIES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Relative to the mean variance of the features."""
HEAD_PENALTIES = (1e-2, 3e-3, 1e-3, 3e-4)
SECONDS = 120.0
Map = tuple[Tensor, Tensor]
"""Weight [width, width] and bias [width], as for a linear."""


@dataclass(frozen=True)
class Adapted:
    """Fitted maps, and what is to be disclosed of them.

    Attributes:
        maps: per exit depth; an exit without one answers through the bare tail.
        disclosure: plain data: method, penalty and losses per exit, seconds, parameters.
        why: per exit that kept none: the numbers.
    """

    maps: Mapping[int, Map]
    disclosure: Mapping[str, Any] = field(default_factory=dict)
    why: Mapping[int, str] = field(default_factory=dict)


def ridge(x: Tensor, y: Tensor, penalties: Sequence[float]) -> list[Map]:
    """An affine map of least squares per penalty: ``y ~ x W^T + b`` for x [n, d], y [n, k]; float64."""
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    values, vectors = torch.linalg.eigh(x.T @ x)
    values = values.clamp_min(0.0)
    turned = vectors.T @ (x.T @ y)
    scale = float(values.mean().clamp_min(1e-30))
    found = []
    for penalty in penalties:
        weight = (vectors @ (turned / (values + penalty * scale)[:, None])).T
        found.append((weight, mean_y - weight @ mean_x))
    return found


def affine_tail(features: Tensor, answers: Tensor) -> Map | None:
    """The affine function that the tail computes of its features, if it is one: found from samples."""
    if answers.ndim != 2 or features.ndim != 2 or len(features) < features.shape[1] + 2 or answers.shape[1] < 2:
        return None
    if answers.shape[1] > features.shape[1]:
        return None
    x = torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64)], 1)
    solved = torch.linalg.lstsq(x, answers.double(), driver="gelsd").solution
    off = (x @ solved - answers.double()).norm() / answers.double().norm().clamp_min(1e-30)
    return (solved[:-1].T, solved[-1]) if off < 1e-3 else None


def head(x: Tensor, probabilities: Tensor, penalty: float, start: Map | None, deadline: float) -> Map:
    """Multinomial regression of features x [n, d] on soft targets [n, classes]; convex, so the result is one."""
    weight, bias = start or (x.new_zeros(probabilities.shape[1], x.shape[1]), x.new_zeros(probabilities.shape[1]))
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    solver = torch.optim.LBFGS([weight, bias], max_iter=20, tolerance_change=1e-7, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        logs = torch.log_softmax(torch.nn.functional.linear(x, weight, bias), -1)
        loss = -(probabilities * logs).sum(1).mean() + penalty * weight.square().sum()
        torch.autograd.backward(loss)
        return loss.detach()

    with torch.enable_grad():
        for _ in range(8):
            solver.step(closure)
            if time.monotonic() > deadline:
                break
    return weight.detach(), bias.detach()


def _folded(made: Map, tail: Map) -> Map:
    """The map after which an affine tail gives what a head gives: the least one, by the pseudo-inverse."""
    inverse = torch.linalg.pinv(tail[0])
    return inverse @ made[0].double(), inverse @ (made[1].double() - tail[1])


Judge = Callable[[int, Map | None], float]
"""Mean loss of an exit with a map, on samples that chose nothing yet."""


def adapt(
    features: Mapping[int, Tensor],
    target: Tensor,
    answers: Tensor | None,
    judge: Judge,
    seconds: float = SECONDS,
    seed: int = 0,
) -> Adapted:
    """Fit a map per exit.

    Args:
        features: of each exit on the fit part, [n, width].
        target: features of the last block there.
        answers: logits there, where the loss is one of classes; else ``None``.
        judge: gives the loss on samples that are not among the features.
        seconds: after which exits that are left keep their closed form.
        seed: of the random control.
    """
    began = time.monotonic()
    deadline = began + seconds
    tail = affine_tail(target, answers) if answers is not None else None
    shuffled = target[torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))]
    maps: dict[int, Map] = {}
    told: list[dict[str, Any]] = []
    why: dict[int, str] = {}
    for exit_, x in features.items():
        tried = [(judge(exit_, m), "ridge", p, m) for p, m in zip(PENALTIES, ridge(x, target, PENALTIES), strict=True)]
        if tail is not None and answers is not None and time.monotonic() < deadline:
            tried += _heads(exit_, x, answers, tail, judge, deadline)
        loss, method, penalty, best = min(tried, key=lambda row: row[0])
        bare = judge(exit_, None)
        random = judge(exit_, ridge(x, shuffled, [penalty])[0])
        row = {"exit": exit_, "method": method, "penalty": penalty, "loss": loss, "bare": bare, "random": random}
        row["kept"] = loss < bare and loss < random
        told.append(row)
        if row["kept"]:
            maps[exit_] = (best[0].float(), best[1].float())
        else:
            why[exit_] = f"its map loses {loss:.3g}, no map {bare:.3g}, a random one {random:.3g}"
    parameters = sum(w.numel() + b.numel() for w, b in maps.values())
    return Adapted(
        maps,
        {
            "exits": told,
            "rows": len(target),
            "seconds": round(time.monotonic() - began, 2),
            "cap_seconds": seconds,
            "seed": seed,
            "parameters": parameters,
            "bytes": 4 * parameters,
            "targets": "the model's own answers; no labels; its weights are untouched",
        },
        why,
    )


def _heads(
    exit_: int, x: Tensor, answers: Tensor, tail: Map, judge: Judge, deadline: float
) -> list[tuple[float, str, float, Map]]:
    mean, spread = x.double().mean(0), x.double().std(0).clamp_min(1e-9)
    even = ((x.double() - mean) / spread).float()
    soft = answers.float().softmax(-1)
    found: list[tuple[float, str, float, Map]] = []
    last: Map | None = None
    for penalty in HEAD_PENALTIES:
        last = head(even, soft, penalty, last, deadline)
        weight = last[0].double() / spread
        plain = (weight, last[1].double() - weight @ mean)
        made = _folded(plain, tail)
        found.append((judge(exit_, made), "head", penalty, made))
        if time.monotonic() > deadline:
            break
    return found
