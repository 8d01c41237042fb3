"""What every exit would have answered for every sample: scores and losses, and what thresholds make of them.

A row leaves at the first exit whose score reaches that exit's threshold, else it runs all blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import torch

from ir.errors import UsageError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FIT, THRESHOLD, REPORT = 0, 1, 2
"""Disjoint parts of the samples: maps are fitted on the first, thresholds set on the second, the third only judges."""
_SHARES = (FIT, FIT, THRESHOLD, REPORT)


@dataclass(frozen=True, eq=False)
class Traces:
    """Scores and losses of samples at the exits.

    Attributes:
        scores: [samples, exits], larger is surer; finite.
        losses: [samples, exits], of leaving there against running all blocks (whose loss is 0); finite.
        layers: blocks that ran when a row leaves at each exit, ascending.
        blocks: of the whole model.
    """

    scores: Floats
    losses: Floats
    layers: tuple[int, ...]
    blocks: int

    def __post_init__(self) -> None:
        """Check the form.

        Raises:
            UsageError: no samples, shapes that do not fit, layers out of order, a score or loss that is not finite.
        """
        want = (len(self.scores), len(self.layers))
        if self.scores.shape != want or self.losses.shape != want:
            raise UsageError(f"scores {self.scores.shape} and losses {self.losses.shape} are not both {want}")
        if not want[0] or not want[1]:
            raise UsageError("exits are judged on samples, and there are none" if want[1] else "there are no exits")
        ascending = [0, *self.layers, self.blocks]
        if any(a >= b for a, b in itertools.pairwise(ascending)):
            raise UsageError(f"exits after {self.layers} of {self.blocks} blocks are not in ascending order")
        for name, values in (("score", self.scores), ("loss", self.losses)):
            if not np.isfinite(values).all():
                row, exit_ = np.argwhere(~np.isfinite(values))[0]
                raise UsageError(
                    f"the {name} of sample {row} after block {self.layers[exit_]} is {values[row, exit_]}",
                    hint="the model gives NaN or infinity there; look at that sample",
                )

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def worst(self) -> float:
        """The largest loss of any row at any exit."""
        return float(np.abs(self.losses).max())

    def taken(self, thresholds: Floats) -> Ints:
        """The exit of every row: 0 to the number of exits, which stands for all blocks."""
        passes = self.scores >= check_thresholds(thresholds, len(self.layers))
        return np.where(passes.any(1), passes.argmax(1), len(self.layers)).astype(np.int64)

    def depths(self, thresholds: Floats) -> Ints:
        """Blocks that every row runs."""
        return np.array([*self.layers, self.blocks], np.int64)[self.taken(thresholds)]

    def lost(self, thresholds: Floats) -> Floats:
        """Loss of every row."""
        padded = np.concatenate([self.losses, np.zeros((len(self), 1))], 1)
        return padded[np.arange(len(self)), self.taken(thresholds)]

    def only(self, exits: Sequence[int]) -> Traces:
        """The same samples with some of the exits."""
        at = list(exits)
        return Traces(self.scores[:, at], self.losses[:, at], tuple(self.layers[e] for e in at), self.blocks)

    def rows(self, index: npt.NDArray[np.bool_] | Ints) -> Traces:
        """Some of the samples."""
        return Traces(self.scores[index], self.losses[index], self.layers, self.blocks)


def check_thresholds(thresholds: Floats, exits: int) -> Floats:
    """Thresholds as they must be: one per exit, infinite ones allowed.

    Raises:
        UsageError: another number of them, or NaN.
    """
    found = np.asarray(thresholds, np.float64)
    if found.shape != (exits,):
        raise UsageError(f"there are {exits} exits and thresholds of shape {found.shape}")
    if np.isnan(found).any():
        raise UsageError("a threshold is NaN", hint="inf never leaves, -inf always does")
    return found


def parts(samples: Sequence[Mapping[str, torch.Tensor]], batched: Sequence[str]) -> Ints:
    """The part of every row of every sample, by the hash of its content: equal rows are never in two parts.

    Args:
        samples: inputs by name.
        batched: the inputs whose first axis counts rows. What pads a row (zeros at its end) does not count.
    """
    found = []
    for sample in samples:
        tensors = [sample[name].contiguous() for name in sorted(batched)]
        for row in range(len(tensors[0])):
            digest = sha256()
            for tensor in tensors:
                digest.update(_content(tensor[row]).rstrip(b"\0") + b"|")
            found.append(_SHARES[digest.digest()[0] % len(_SHARES)])
    return np.array(found, np.int64)


def data_digest(samples: Sequence[Mapping[str, torch.Tensor]]) -> str:
    """SHA-256 of all samples, in order."""
    digest = sha256()
    for sample in samples:
        for name in sorted(sample):
            digest.update(f"{name} {sample[name].dtype} {tuple(sample[name].shape)}".encode())
            digest.update(_content(sample[name]))
    return digest.hexdigest()


def _content(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
