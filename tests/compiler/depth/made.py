"""Made-up traces whose best thresholds are known."""

from __future__ import annotations

import numpy as np

from compiler.depth.traces import Traces


def easy_and_hard(samples: int = 2000, seed: int = 0, blocks: int = 6) -> Traces:
    """Each row has a block from which on it loses nothing; before it loses 1. The score says so, with noise."""
    rng = np.random.default_rng(seed)
    layers = tuple(range(1, blocks))
    ready = rng.integers(1, blocks + 1, size=samples)
    late = ready[:, None] - np.array(layers)[None]
    losses = (late > 0).astype(np.float64)
    scores = 1 / (1 + np.exp(late - 0.5 + 0.2 * rng.standard_normal(losses.shape)))
    return Traces(scores, losses, layers, blocks)


def graded(samples: int = 2000, seed: int = 0, blocks: int = 6) -> Traces:
    """Losses that fall with the depth, by another rate for every row; the score is the negative loss, with noise."""
    rng = np.random.default_rng(seed)
    layers = tuple(range(1, blocks))
    rate = rng.gamma(2.0, 1.0, size=(samples, 1))
    losses = rate * np.exp(-np.array(layers))[None]
    scores = -losses * np.exp(0.3 * rng.standard_normal(losses.shape))
    return Traces(scores, losses, layers, blocks)
