"""Runs a schedule: segments in turn, one truth value read per decision, values forgotten after their last use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from backends.base import Engine
from backends.buckets import padded
from backends.segments.schedule import Branch, Loop, Rows, Run, Schedule, Side, Step
from ir.types import DTYPES

Tensors = Mapping[str, torch.Tensor]


class Scheduler(Engine):
    """Segments behind the face of one engine."""

    def __init__(self, schedule: Schedule, segments: Sequence[Engine], weights: Tensors) -> None:
        """Take engines that are loaded; ``weights`` by the name that the schedule gives them."""
        self._schedule = schedule
        self._segments = segments
        constants = {
            name: torch.tensor(c.values, dtype=DTYPES[c.dtype]).reshape(c.shape)
            for name, c in schedule.constants.items()
        }
        self._fixed = {**weights, **constants}

    def __call__(self, inputs: Tensors) -> dict[str, torch.Tensor]:
        """Run once."""
        schedule = self._schedule
        values = {name: inputs[key] for key, name in schedule.inputs.items()}
        values.update(self._fixed)
        self._steps(schedule.steps, values)
        given = {id(tensor) for tensor in (*inputs.values(), *self._fixed.values())}
        found: dict[str, Any] = {}
        for key, what in schedule.outputs.items():
            if isinstance(what, str):  # what belongs to the caller, or to the next call, is not handed out
                found[key] = values[what].clone() if id(values[what]) in given else values[what]
            else:
                found[key] = None if what is None else torch.tensor(what, dtype=_of(what))
        return found

    def _steps(self, steps: tuple[Step, ...], values: dict[str, torch.Tensor]) -> None:
        for step in steps:
            if isinstance(step, Run):
                values.update(self._segments[step.segment]({name: values[name] for name in step.inputs}))
            elif isinstance(step, Branch):
                side = step.taken if bool(values[step.test]) else step.otherwise
                values.update(zip(step.results, self._side(side, values), strict=True))
            elif isinstance(step, Loop):
                self._loop(step, values)
            else:
                self._rows(step, values)
            for name in step.drop:
                values.pop(name, None)

    def _loop(self, step: Loop, values: dict[str, torch.Tensor]) -> None:
        values.update(zip(step.carried, [values[name] for name in step.start], strict=True))
        while bool(self._side(step.test, values)[0]):
            values.update(zip(step.carried, self._side(step.body, values), strict=True))

    def _rows(self, step: Rows, values: dict[str, torch.Tensor]) -> None:
        live = values[step.live]
        given = [values[name] for name in step.given]
        index = live.nonzero().squeeze(1)
        count, rows = index.shape[0], live.shape[0]
        if not count:
            values.update(zip(step.results, given, strict=False))
            return
        places = padded(index, rows) if step.padded else index
        picked = given if count == rows else [tensor.index_select(0, places) for tensor in given]
        values.update(zip(step.inner, picked, strict=True))
        made = self._side(step.side, values)
        if count != rows:
            made = [old.index_copy(0, index, new[:count]) for old, new in zip(given, made, strict=False)]
        values.update(zip(step.results, made, strict=True))

    def _side(self, side: Side, values: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        self._steps(side.steps, values)
        results = [values[name] for name in side.results]
        for name in side.drop:
            values.pop(name, None)
        return results

    def facts(self) -> Mapping[str, int | str]:
        """Of all segments together; a count of them is a count of dispatches when every side is taken."""
        total: Counter[str] = Counter()
        texts: dict[str, str] = {}
        for segment in self._segments:
            for key, value in segment.facts().items():
                if isinstance(value, int):
                    total[key] += value
                else:
                    texts.setdefault(key, value)
        return {**texts, **total, "segments": len(self._segments)}

    def close(self) -> None:
        """Let go of every segment."""
        for segment in self._segments:
            release = getattr(segment, "close", None)
            if release is not None:
                release()


def _of(literal: bool | int | float) -> torch.dtype:
    if isinstance(literal, bool):
        return torch.bool
    return torch.int64 if isinstance(literal, int) else torch.float64
