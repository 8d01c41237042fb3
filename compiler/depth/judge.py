"""Judges an engine whose rows leave early, on held-out samples: the part that set neither maps nor thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from compiler.depth.tapped import row_losses
from compiler.depth.thresholds import SURE

if TYPE_CHECKING:
    from compiler.depth.calibrate import Exits
    from compiler.select.reference import Loss, Reference, Runner

TIMED = 8
"""Held-out inputs on which engines are timed: how long one takes depends on what is in it."""


def judge(reference: Reference, run: Runner, exits: Exits | None, max_loss: float) -> tuple[Loss, float]:
    """Loss of an engine, and what it may lose.

    Where rows leave early and the user gave no metric, the loss is the mean over the held-out rows, and what may be
    chance (one-sided, 95 %) is allowed on top of the bound: the thresholds kept to the budget with a margin.
    """
    found = reference.judge(run)
    if exits is None:
        return found, max_loss
    bound = max(max_loss, exits.budget)
    if reference.metric is not None:
        return found, bound
    mean, error = held_out(run, exits)
    return replace(found, loss=mean), bound + SURE * error


def held_out(run: Runner, exits: Exits) -> tuple[float, float]:
    """Mean loss on the report part against all blocks, and its standard error."""
    lost = []
    for one in exits.report:
        full = {n: t for n, t in one.results.items() if not n.startswith("trace:")}
        answer = run(one.inputs)
        lost.append(row_losses(full, {n: answer[n] for n in full}, one.inputs, exits.kind, exits.quality))
    rows = torch.cat(lost).double().numpy()
    return float(rows.mean()), float(rows.std(ddof=1) / np.sqrt(len(rows)))


def timing_inputs(
    exits: Mapping[str, Exits], example: Mapping[str, torch.Tensor], most: int = TIMED
) -> list[dict[str, torch.Tensor]]:
    """Held-out inputs with as many rows as the example, evenly from all; none when nothing leaves early."""
    if not exits:
        return []
    report = next(iter(exits.values())).report
    rows = len(next(iter(example.values())))
    able = [one.inputs for one in report if all(len(t) >= rows for t in one.inputs.values())]
    chosen = [able[i * len(able) // most] for i in range(min(most, len(able)))] if len(able) >= most else able
    return [{name: tensor[:rows] for name, tensor in one.items()} for one in chosen]
