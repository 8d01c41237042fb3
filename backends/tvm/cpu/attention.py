"""Attention in one kernel: a head at a time, a few query rows at a time, the scores never leave the cache.

Per head the keys are packed in panels ``[panel, dim, width]`` once; then, for a block of rows: scores by a register
tile, softmax in place, product with the values by a register tile. Heads may lie side by side (``[batch, seq, heads,
dim]``, as linears leave them) or apart (``[batch, heads, seq, dim]``). A row that the mask leaves empty gives zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from backends.tvm.cpu.build import Tile, index, number, read, spread, write
from backends.tvm.cpu.gemm import parallel, serial, tile_of
from backends.tvm.cpu.rows import lanes_max, lanes_sum
from backends.tvm.cpu.target import Cpu
from backends.tvm.scope import Kernel, Scope, Tensor, aligned
from ir import Dim

_LEAST = -3.4028234663852886e38


@dataclass(frozen=True)
class Heads:
    """A tensor of heads: ``side`` when it is [batch, seq, heads, dim], else [batch, heads, seq, dim]."""

    tensor: Tensor
    side: bool

    def at(self, batch: Any, head: Any, row: Any, column: Any) -> list[Any]:
        """Where a number lies."""
        return [batch, row, head, column] if self.side else [batch, head, row, column]

    def size(self, axis: int) -> Dim:
        """Size of batch, heads, seq or dim."""
        order = (0, 2, 1, 3) if self.side else (0, 1, 2, 3)
        return self.tensor.shape[order[axis]]


def attention(
    s: Scope, cpu: Cpu, q: Heads, k: Heads, v: Heads, mask: Tensor | None, scale: float, causal: bool, side: bool
) -> Tensor:
    """``softmax(q k' scale + mask) v`` in float32; ``side`` is how the result lies. ``mask``: f32, added."""
    from tvm import tirx
    from tvm.tirx.script.builder import ir as I  # noqa: N812

    batch, heads, rows_, depth = (q.size(i) for i in range(4))
    keys, wide = k.size(2), v.size(3)
    assert isinstance(depth, int) and isinstance(wide, int) and isinstance(heads, int)
    shared = k.size(1)
    assert isinstance(shared, int)
    groups, lanes = heads // shared, cpu.lanes
    height, width = tile_of(cpu)
    order = (batch, rows_, heads, wide) if side else (batch, heads, rows_, wide)
    inputs = list(dict.fromkeys([q.tensor, k.tensor, v.tensor, *([mask] if mask is not None else [])]))

    def build(kernel: Kernel, *buffers: Any) -> None:
        table = dict(zip(inputs, buffers[:-1], strict=True))
        qs, ks, vs, out = table[q.tensor], table[k.tensor], table[v.tensor], buffers[-1]
        count, length = kernel.dim(rows_), kernel.dim(keys)
        panels = tirx.floordiv(length + (width - 1), index(width))
        with parallel(kernel.dim(batch) * heads) as task:
            b, h = tirx.floordiv(task, index(heads)), tirx.floormod(task, index(heads))
            g = tirx.floordiv(h, index(groups))
            packed = I.alloc_buffer((panels * (depth * width),), "float32")
            scores = I.alloc_buffer((panels * width * height,), "float32")
            _pack(ks, packed, k, (b, g), length, panels, depth, width)

            def block(first: Any, size: int) -> None:
                _scores(qs, packed, scores, q, (b, h, first), (size, width, depth, lanes), panels)
                limit = tirx.min(first + size, length) if causal else length
                with serial(size) as i:
                    place = panels * width * i
                    held = tirx.min(first + i + 1, length) if causal else length
                    bias = None if mask is None else _bias(table[mask], mask, b, h, first + i)
                    _softmax(s, scores, place, held, limit, scale, bias, lanes)
                _values(scores, vs, out, v, side, (b, h, g, first), (size, width, wide, lanes), limit, panels)

            with serial(tirx.floordiv(count, index(height))) as i:
                block(i * height, height)
            done, size = tirx.floordiv(count, index(height)) * height, _half(height)
            while size:
                with serial(tirx.floordiv(count - done, index(size))) as i:
                    block(done + i * size, size)
                done = done + tirx.floordiv(count - done, index(size)) * size
                size //= 2

    return s.kernel("attention", build, inputs, [(torch.float32, order)])[0]


def _half(height: int) -> int:
    """The largest power of two below."""
    size = 1
    while size * 2 < height:
        size *= 2
    return size


def _pack(
    ks: Any, packed: Any, k: Heads, place: tuple[Any, Any], length: Any, panels: Any, depth: int, width: int
) -> None:
    from tvm import tirx

    with serial(panels) as p, serial(width) as j:
        key = p * width + j
        with serial(depth) as d:
            inside = ks[tuple(k.at(*place, tirx.min(key, length - 1), d))]
            write(packed, tirx.Select(key < length, inside, number(0)), [(p * depth + d) * width + j], 1)


def _scores(
    qs: Any, packed: Any, scores: Any, q: Heads, place: tuple[Any, Any, Any], sizes: Sequence[int], panels: Any
) -> None:
    b, h, first = place
    size, width, depth, lanes = sizes
    with serial(panels) as p:
        acc = Tile(size, width // lanes, lanes)
        for i in range(size):
            for j in range(acc.vectors):
                acc[i, j] = number(0, lanes)
        with serial(depth) as d:
            for i in range(size):
                for j in range(acc.vectors):
                    key = read(packed, [(p * depth + d) * width + j * lanes], lanes)
                    acc[i, j] = acc[i, j] + spread(qs[tuple(q.at(b, h, first + i, d))], lanes) * key
        for i in range(size):
            for j in range(acc.vectors):
                write(scores, acc[i, j], [panels * width * i + p * width + j * lanes], lanes)


Bias = Callable[[Any, int], Any]


def _bias(buffer: Any, mask: Tensor, b: Any, h: Any, row: Any) -> Bias:
    """What a mask adds at a column: vectors, or one number for all when the mask has one column."""

    def at(column: Any, lanes: int) -> Any:
        where = aligned(mask.shape, [b, h, row, column])
        where = [index(w) if isinstance(w, int) else w for w in where]
        if mask.shape[-1] == 1:
            return spread(buffer[tuple(where)], lanes)
        return read(buffer, where, lanes)

    return at


def _softmax(
    s: Scope, scores: Any, place: Any, held: Any, limit: Any, scale: float, bias: Bias | None, lanes: int
) -> None:
    """Softmax of the first ``held`` of a row; zeros up to ``limit``."""
    from tvm import tirx

    acc, one = Tile(1, 2, lanes), Tile(1, 2, 1)
    whole = tirx.floordiv(held, index(lanes))
    left = held - whole * lanes

    def raw(column: Any, count: int) -> Any:
        value = read(scores, [place + column], count) * number(scale, count)
        return value if bias is None else value + bias(column, count)

    acc[0, 0] = number(_LEAST, lanes)
    with serial(whole) as j:
        write(scores, raw(j * lanes, lanes), [place + j * lanes], lanes)
        acc[0, 0] = tirx.max(acc[0, 0], read(scores, [place + j * lanes], lanes))
    one[0, 0] = lanes_max(acc, (0, 0))
    with serial(left) as j:
        write(scores, raw(whole * lanes + j, 1), [place + whole * lanes + j], 1)
        one[0, 0] = tirx.max(one[0, 0], scores[place + whole * lanes + j])
    acc[0, 1] = number(0, lanes)
    with serial(whole) as j:
        grown = s.math.exp(read(scores, [place + j * lanes], lanes) - spread(one[0, 0], lanes))
        write(scores, grown, [place + j * lanes], lanes)
        acc[0, 1] = acc[0, 1] + read(scores, [place + j * lanes], lanes)
    one[0, 1] = lanes_sum(acc, (0, 1))
    with serial(left) as j:
        at = place + whole * lanes + j
        write(scores, s.math.exp(scores[at] - one[0, 0]), [at], 1)
        one[0, 1] = one[0, 1] + scores[at]
    one[0, 1] = tirx.Select(one[0, 1] == number(0), number(0), number(1) / one[0, 1])
    with serial(whole) as j:
        at = place + j * lanes
        write(scores, read(scores, [at], lanes) * spread(one[0, 1], lanes), [at], lanes)
    with serial(left) as j:
        at = place + whole * lanes + j
        write(scores, scores[at] * one[0, 1], [at], 1)
    with serial(limit - held) as j:
        write(scores, number(0), [place + held + j], 1)


def _values(
    scores: Any,
    vs: Any,
    out: Any,
    v: Heads,
    side: bool,
    place: Sequence[Any],
    sizes: Sequence[int],
    limit: Any,
    panels: Any,
) -> None:
    b, h, g, first = place
    size, width, wide, lanes = sizes
    vectors = next(n for n in range(width // lanes, 0, -1) if wide // lanes % n == 0)
    for start in range(0, wide, vectors * lanes):
        with serial(1):
            acc = Tile(size, vectors, lanes)
            for i in range(size):
                for j in range(vectors):
                    acc[i, j] = number(0, lanes)
            with serial(limit) as key:
                for i in range(size):
                    for j in range(vectors):
                        value = read(vs, v.at(b, g, key, index(start + j * lanes)), lanes)
                        acc[i, j] = acc[i, j] + spread(scores[panels * width * i + key], lanes) * value
            for i in range(size):
                for j in range(vectors):
                    column = index(start + j * lanes)
                    where = [b, first + i, h, column] if side else [b, h, first + i, column]
                    write(out, acc[i, j], where, lanes)
