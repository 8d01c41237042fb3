"""Rows whose number the data decides: counted first, then gathered into a tensor of that many.

The count becomes a symbol of the Relax function; no callback into Python is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from backends.tvm.scope import Kernel, Scope, Tensor
from ir import Dim


def nonzero(s: Scope, x: Tensor, count: Dim) -> Tensor:
    """Coordinates of what is not zero: int64 [count, rank]."""
    return mask_places(s, s.tensor(x, torch.bool), count)


def mask_places(s: Scope, mask: Tensor, count: Dim) -> Tensor:
    """Coordinates of what is true: int64 [count, rank], in order."""
    from tvm import tirx
    from tvm.tirx.script.builder import ir as I  # noqa: N812

    from backends.tvm.indexing import nest
    from backends.tvm.reductions import fold

    total = fold(s, "count", mask, list(range(mask.rank)), False, torch.int64, "sum")
    s.bind(count, total)

    def build(k: Kernel, truth: Any, out: Any) -> None:
        with I.serial(0, 1):  # Relax mistakes a kernel that begins with its storage for one that can be scheduled
            place = I.alloc_buffer((1,), "int64", scope="local")
            I.buffer_store(place, tirx.const(0, "int64"), [0])

            def visit(where: Sequence[Any]) -> None:
                with I.If(truth[tuple(where)]), I.Then():
                    for axis, i in enumerate(where):
                        I.buffer_store(out, tirx.Cast("int64", i), [place[0], axis])
                    I.buffer_store(place, place[0] + 1, [0])

            nest(k, mask.shape, visit)

    return s.kernel("nonzero", build, [mask], [(torch.int64, (count, mask.rank))])[0]


def masked_write(s: Scope, x: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    """``x[mask] = rows``: a copy with the rows written where the mask is true, in order."""
    from tvm import tirx
    from tvm.tirx.script.builder import ir as I  # noqa: N812

    from backends.tvm.indexing import nest

    def build(k: Kernel, source: Any, truth: Any, new: Any, out: Any) -> None:
        nest(k, x.shape, lambda where: I.buffer_store(out, source[tuple(where)], where), parallel=True)
        with I.serial(0, 1):
            place = I.alloc_buffer((1,), "int64", scope="local")
            I.buffer_store(place, tirx.const(0, "int64"), [0])

            def visit(where: Sequence[Any]) -> None:
                with I.If(tirx.all(truth[tuple(where)], place[0] < k.dim(rows.shape[0]))), I.Then():
                    nest(
                        k, x.shape[mask.rank :],
                        lambda rest: I.buffer_store(out, new[(place[0], *rest)], [*where, *rest]),
                    )  # fmt: skip
                    I.buffer_store(place, place[0] + 1, [0])

            nest(k, mask.shape, visit)

    return s.kernel("masked_write", build, [x, mask, rows], [(x.dtype, x.shape)])[0]
