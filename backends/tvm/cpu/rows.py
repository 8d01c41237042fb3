"""Layer norm and softmax: a row at a time, in vectors."""

from __future__ import annotations

from typing import Any

import torch

from backends.tvm.cpu.build import Tile, index, number, read, spread, write
from backends.tvm.cpu.gemm import parallel, serial
from backends.tvm.cpu.target import Cpu
from backends.tvm.scope import Kernel, Scope, Tensor
from ir import Dim


def count_of(shape: tuple[Dim, ...]) -> Dim:
    """How many rows leading dims make."""
    total: Dim = 1
    for dim in shape:
        total = total * dim
    return total


def lanes_sum(tile: Tile, place: tuple[int, int]) -> Any:
    """The sum of a vector, pairwise."""
    parts = [tile.lane(place, lane) for lane in range(tile.lanes)]
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def lanes_max(tile: Tile, place: tuple[int, int]) -> Any:
    """The largest of a vector."""
    from tvm import tirx

    parts = [tile.lane(place, lane) for lane in range(tile.lanes)]
    while len(parts) > 1:
        parts = [tirx.max(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def layer_norm(s: Scope, cpu: Cpu, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Over a last dim that is a multiple of the vectors."""
    from tvm import tirx

    width, lanes = x.shape[-1], cpu.lanes
    assert isinstance(width, int) and width % lanes == 0
    count, vectors = count_of(x.shape[:-1]), width // lanes
    inputs = [s.reshape(x, (count, width)), *(t for t in (weight, bias) if t is not None)]

    def build(k: Kernel, a: Any, *rest: Any) -> None:
        more = list(rest)
        scale = more.pop(0) if weight is not None else None
        shift = more.pop(0) if bias is not None else None
        out = more.pop(0)
        with parallel(k.dim(count)) as row:
            acc, one = Tile(1, 2, lanes), Tile(1, 2, 1)
            acc[0, 0] = number(0, lanes)
            with serial(vectors) as j:
                acc[0, 0] = acc[0, 0] + read(a, [row, j * lanes], lanes)
            one[0, 0] = lanes_sum(acc, (0, 0)) / number(width)
            acc[0, 1] = number(0, lanes)
            with serial(vectors) as j:
                gap = read(a, [row, j * lanes], lanes) - spread(one[0, 0], lanes)
                acc[0, 1] = acc[0, 1] + gap * gap
            one[0, 1] = number(1) / tirx.sqrt(lanes_sum(acc, (0, 1)) / number(width) + number(eps))
            with serial(vectors) as j:
                made = (read(a, [row, j * lanes], lanes) - spread(one[0, 0], lanes)) * spread(one[0, 1], lanes)
                if scale is not None:
                    made = made * read(scale, [j * lanes], lanes)
                if shift is not None:
                    made = made + read(shift, [j * lanes], lanes)
                write(out, made, [row, j * lanes], lanes)

    made = s.kernel("layer_norm", build, inputs, [(torch.float32, (count, width))])[0]
    return s.reshape(made, x.shape)


def rms_norm(s: Scope, cpu: Cpu, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Over a last dim that is a multiple of the vectors."""
    from tvm import tirx

    width, lanes = x.shape[-1], cpu.lanes
    assert isinstance(width, int) and width % lanes == 0
    count, vectors = count_of(x.shape[:-1]), width // lanes
    inputs = [s.reshape(x, (count, width)), *([weight] if weight is not None else [])]

    def build(k: Kernel, a: Any, *rest: Any) -> None:
        scale, out = (rest[0] if weight is not None else None), rest[-1]
        with parallel(k.dim(count)) as row:
            acc, one = Tile(1, 1, lanes), Tile(1, 1, 1)
            acc[0, 0] = number(0, lanes)
            with serial(vectors) as j:
                value = read(a, [row, j * lanes], lanes)
                acc[0, 0] = acc[0, 0] + value * value
            one[0, 0] = number(1) / tirx.sqrt(lanes_sum(acc, (0, 0)) / number(width) + number(eps))
            with serial(vectors) as j:
                made = read(a, [row, j * lanes], lanes) * spread(one[0, 0], lanes)
                write(out, made if scale is None else made * read(scale, [j * lanes], lanes), [row, j * lanes], lanes)

    made = s.kernel("rms_norm", build, inputs, [(torch.float32, (count, width))])[0]
    return s.reshape(made, x.shape)


def softmax(s: Scope, cpu: Cpu, x: Tensor) -> Tensor:
    """Over the last dim, of any length."""
    width, lanes = x.shape[-1], cpu.lanes
    count = count_of(x.shape[:-1])

    def build(k: Kernel, a: Any, out: Any) -> None:
        with parallel(k.dim(count)) as row:
            softmax_row(s, a, out, [row], k.dim(width), lanes)

    made = s.kernel("softmax", build, [s.reshape(x, (count, width))], [(torch.float32, (count, width))])[0]
    return s.reshape(made, x.shape)


def softmax_row(s: Scope, a: Any, out: Any, row: list[Any], width: Any, lanes: int) -> None:
    """One row: largest, exponentials and their sum, quotient; whole vectors first, the rest one by one."""
    from tvm import tirx

    acc, one = Tile(1, 2, lanes), Tile(1, 2, 1)
    whole = tirx.floordiv(width, index(lanes))
    left = width - whole * lanes
    least = -3.4028234663852886e38
    acc[0, 0] = number(least, lanes)
    with serial(whole) as j:
        acc[0, 0] = tirx.max(acc[0, 0], read(a, [*row, j * lanes], lanes))
    one[0, 0] = lanes_max(acc, (0, 0))
    with serial(left) as j:
        one[0, 0] = tirx.max(one[0, 0], a[(*row, whole * lanes + j)])
    acc[0, 1] = number(0, lanes)
    with serial(whole) as j:
        grown = s.math.exp(read(a, [*row, j * lanes], lanes) - spread(one[0, 0], lanes))
        write(out, grown, [*row, j * lanes], lanes)
        acc[0, 1] = acc[0, 1] + read(out, [*row, j * lanes], lanes)
    one[0, 1] = lanes_sum(acc, (0, 1))
    with serial(left) as j:
        place = [*row, whole * lanes + j]
        write(out, s.math.exp(a[tuple(place)] - one[0, 0]), place, 1)
        one[0, 1] = one[0, 1] + out[tuple(place)]
    one[0, 1] = number(1) / one[0, 1]
    with serial(whole) as j:
        write(out, read(out, [*row, j * lanes], lanes) * spread(one[0, 1], lanes), [*row, j * lanes], lanes)
    with serial(left) as j:
        place = [*row, whole * lanes + j]
        write(out, out[tuple(place)] * one[0, 1], place, 1)
