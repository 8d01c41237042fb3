"""Live rows for an engine of fixed batch sizes: padded up to the next size, the padding cut off again.

Sizes are powers of two and the whole batch, so that at most half of the work is padding. Padding repeats a live row:
real values, no surprises for kernels; what becomes of it is thrown away. Sound for regions that keep rows apart only
(``ir.rowwise``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Tensors = Sequence[torch.Tensor]


def buckets(most: int) -> tuple[int, ...]:
    """Batch sizes to be ready for: 1, 2, 4, ... and ``most``.

    >>> buckets(6)
    (1, 2, 4, 6)
    """
    sizes = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    return (*sizes, most) if most else ()


def bucket(live: int, most: int) -> int:
    """The smallest of ``buckets(most)`` that holds so many rows; 0 for none.

    >>> [bucket(live, 6) for live in range(7)]
    [0, 1, 2, 4, 4, 6, 6]
    """
    return min(1 << (live - 1).bit_length(), most) if live else 0


def padded(index: torch.Tensor, most: int) -> torch.Tensor:
    """Positions of live rows ``[k]``, the last one repeated up to the bucket."""
    count = index.shape[0]
    size = bucket(count, most)
    return index if size == count else torch.cat([index, index[-1:].expand(size - count)])


def run_bucketed(
    live: torch.Tensor, carried: Tensors, beside: Tensors, run: Callable[[list[torch.Tensor]], Tensors]
) -> list[torch.Tensor]:
    """``rows`` as ``ir.rows`` defines it, by an engine that knows the sizes of ``buckets(n)`` only.

    Args:
        live: bool ``[n]``.
        carried: tensors over the ``n`` rows that come back.
        beside: tensors over the ``n`` rows that are only read.
        run: the region on picked rows, all of one bucket's size; gives one tensor per carried one. Not called for none.
    """
    index = live.nonzero().squeeze(1)
    count, most = index.shape[0], live.shape[0]
    if not count:
        return list(carried)
    given = [*carried, *beside]
    places = padded(index, most)
    made = run(given if count == most else [tensor.index_select(0, places) for tensor in given])
    if count == most:
        return list(made)
    return [old.index_copy(0, index, new[:count]) for old, new in zip(carried, made, strict=True)]
