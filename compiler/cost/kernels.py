"""Seconds of one kernel on one machine: roofline, and where timings were fitted, tiles and waves.

The functions take numpy arrays as well as numbers, so that the fit (``examples/fit_cost_model.py``) and
the estimate run the same lines. Parameters live in ``calibration.yaml``; nothing here is tuned by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = Array | float

_SIDES = (16, 32, 64, 128, 256)
_TILES = [(m, n) for m in _SIDES for n in _SIDES if 512 <= m * n < 256 * 256]
_SPLITS = (1, 2, 4, 8)
# one row per way to cut a product: every tile of the menu, its inner dimension whole or split
_TILE_M, _TILE_N, _SPLIT = (
    np.array(column, dtype=np.float64) for column in zip(*[(m, n, s) for m, n in _TILES for s in _SPLITS], strict=True)
)
_STEP = 64  # depth of one step of the inner loop
_QUERY_TILE = 128  # queries that one block of flash attention holds


@dataclass(frozen=True, slots=True)
class Machine:
    """What a kernel sees of a target.

    Attributes:
        rate: operations per second in the format of the product.
        bandwidth: bytes per second.
        units: streaming multiprocessors.
    """

    rate: float
    bandwidth: float
    units: int


@dataclass(frozen=True, slots=True)
class GemmFit:
    """Fitted behaviour of products on one machine in one format.

    Attributes:
        t0: seconds that every product takes, launch and ramp.
        compute: fraction of ``rate`` that large tiles reach.
        memory: fraction of ``bandwidth`` that a full machine reaches.
        tile_loss: how much small tiles lose: rate falls by ``1 + tile_loss * (1/m + 1/n)``.
        step: least seconds of 64 steps of the inner loop, however small the tile.
        fill: blocks per unit that saturate the memory.
        split: seconds to add partial sums.
        norm: exponent that joins compute and memory time; large is ``max``.
        quantize: fraction of ``bandwidth`` that quantizing the activations reaches; 0: none in the data.
        row: seconds per row that quantizing adds.
    """

    t0: float
    compute: float
    memory: float
    tile_loss: float
    step: float
    fill: float
    split: float
    norm: float
    quantize: float = 0.0
    row: float = 0.0


@dataclass(frozen=True, slots=True)
class AttentionFit:
    """Fitted behaviour of flash attention, as ``GemmFit``; ``wave``: seconds per further wave of blocks."""

    t0: float
    compute: float
    memory: float
    step: float
    fill: float
    wave: float
    norm: float


def roofline(flops: Numbers, bytes_: Numbers, machine: Machine) -> Array:
    """The physical bound: no kernel is faster than its operations or its bytes."""
    return np.maximum(np.asarray(flops) / machine.rate, np.asarray(bytes_) / machine.bandwidth)


def gemm_seconds(
    fit: GemmFit, machine: Machine, batch: Numbers, m: Numbers, n: Numbers, k: Numbers, bytes_: Numbers
) -> Array:
    """Seconds of ``batch`` products ``[m, k] x [k, n]`` that move ``bytes_``: the best cut of the menu.

    A library picks the tile and the split by shape; a model with one fixed tile is worse than none.
    """
    batch, m, n, k, bytes_ = (np.asarray(x, dtype=np.float64)[..., None] for x in (batch, m, n, k, bytes_))
    blocks = batch * np.ceil(m / _TILE_M) * np.ceil(n / _TILE_N) * _SPLIT
    waves = np.ceil(blocks / machine.units)
    depth = np.ceil(k / _SPLIT / _STEP) * _STEP
    per_unit = machine.rate / machine.units * fit.compute / (1 + fit.tile_loss * (1 / _TILE_M + 1 / _TILE_N))
    compute = np.maximum(waves * 2 * _TILE_M * _TILE_N * depth / per_unit, waves * depth / _STEP * fit.step)
    partial = np.where(_SPLIT > 1, 8 * batch * m * n * _SPLIT, 0)
    filled = np.minimum(1, blocks / (fit.fill * machine.units))
    memory = (bytes_ + partial) / (fit.memory * machine.bandwidth * filled)
    seconds = _join(compute, memory, fit.norm) + np.where(_SPLIT > 1, fit.split, 0)
    best: Array = fit.t0 + seconds.min(axis=-1)
    return best


def quantize_seconds(fit: GemmFit, machine: Machine, m: Numbers, k: Numbers, bytes_: Numbers) -> Array:
    """Seconds to quantize ``[m, k]`` activations before a product, moving ``bytes_``."""
    if not fit.quantize:
        return np.zeros_like(np.asarray(m, dtype=np.float64))
    return np.asarray(bytes_) / (fit.quantize * machine.bandwidth) + fit.row * np.asarray(m)


def attention_seconds(
    fit: AttentionFit,
    machine: Machine,
    batch: Numbers,
    queries: Numbers,
    keys: Numbers,
    flops: Numbers,
    bytes_: Numbers,
) -> Array:
    """Seconds of attention over ``batch`` heads; ``flops`` and ``bytes_`` as priced."""
    batch, queries, keys = (np.asarray(x, dtype=np.float64) for x in (batch, queries, keys))
    blocks = batch * np.ceil(queries / _QUERY_TILE)
    waves = np.ceil(blocks / machine.units)
    compute = np.asarray(flops) / blocks * np.maximum(waves, blocks / machine.units) * machine.units
    compute = np.maximum(compute / (machine.rate * fit.compute), np.ceil(keys / _STEP) * fit.step)
    filled = np.minimum(1, blocks * np.maximum(1, keys / 1024) / (fit.fill * machine.units))
    memory = np.asarray(bytes_) / (fit.memory * machine.bandwidth * filled)
    return fit.t0 + _join(compute, memory, fit.norm) + fit.wave * (waves - 1)


def _join(one: Array, two: Array, norm: float) -> Array:
    """``(one**norm + two**norm) ** (1/norm)``, scaled so that it cannot underflow."""
    high, low = np.maximum(one, two), np.minimum(one, two)
    return high * (1 + (low / high) ** norm) ** (1 / norm)
