"""Honest timing: everything that is compared runs interleaved, in one process, on the same inputs and threads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

_REST = 0.02
"""Seconds; thread pools of ONNX Runtime and OpenMP spin for some milliseconds after a call."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call: median, 10th and 90th percentile over ``rounds`` rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def per(self, count: int) -> Timing:
        """Of one call, where each round made so many."""
        return Timing(self.median / count, self.low / count, self.high / count, self.rounds)

    @property
    def spread(self) -> float:
        """Half of the distance between the percentiles, relative to the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0


def interleave(
    calls: Mapping[str, Callable[[], object]], seconds: float = 2.0, least: int = 5, most: int = 200
) -> dict[str, Timing]:
    """Time several calls round by round, so that a busy moment of the machine hits all of them alike.

    Before each timed call comes a short rest, in which the threads of the engine before it stop spinning, and one
    call that does not count, which brings the engine's own data back into the caches.

    Args:
        calls: what to time, by name.
        seconds: stop after about this long, but not before ``least`` rounds.
        least: rounds at least.
        most: rounds at most.
    """
    return {name: _summary(times) for name, times in rounds(calls, seconds, least, most).items()}


def rounds(
    calls: Mapping[str, Callable[[], object]], seconds: float = 2.0, least: int = 5, most: int = 200
) -> dict[str, list[float]]:
    """As ``interleave``, every time of every round: what is taken in one round can be compared pair by pair."""
    for call in calls.values():  # first calls build caches, pages and thread pools
        call()
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for count in range(most):
        if count >= least and time.perf_counter() > end:
            break
        for name, call in calls.items():
            time.sleep(_REST)
            call()
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return taken


def _summary(times: list[float]) -> Timing:
    ordered = sorted(times)
    last = len(ordered) - 1
    return Timing(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered))


@contextmanager
def torch_threads(threads: int | None) -> Iterator[int]:
    """Let torch use so many threads meanwhile; yields the number in force."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
