"""Products with a weight: the weight is packed in panels, a tile of the result stays in registers, rows may be dynamic.

A panel holds ``width`` outputs: ``packed[panel, k, width]``, zeros beyond the last output. One task is a panel and a
block of rows; a tile of rows by a panel is accumulated over all of k, then finished (bias, activation, residual) and
stored once. Sums run over k in order, so results do not depend on threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from backends.tvm.cpu.build import Tile, index, number, read, spread, write
from backends.tvm.cpu.target import Cpu
from backends.tvm.scope import Kernel, Scope, Tensor
from ir import Dim

_TILES = {16: (8, 48), 8: (6, 16), 4: (4, 8)}  # lanes -> rows and columns that fit the registers
_BLOCK = 64  # rows of a task


@dataclass(frozen=True)
class Epilogue:
    """What happens to a result before it is stored.

    Attributes:
        activation: over TIR vectors.
        residual: a tensor of the result's shape, added last.
    """

    activation: Callable[[Any], Any] | None = None
    residual: Tensor | None = None


def tile_of(cpu: Cpu) -> tuple[int, int]:
    """Rows and columns of a tile."""
    return _TILES[cpu.lanes]


def packed_panels(weight: torch.Tensor, width: int) -> torch.Tensor:
    """``weight`` [N, K] as panels [ceil(N / width), K, width]."""
    outs, depth = weight.shape
    panels = -(-outs // width)
    padded = torch.zeros(panels * width, depth, dtype=weight.dtype)
    padded[:outs] = weight
    return padded.reshape(panels, width, depth).transpose(1, 2).contiguous()


def linear(
    s: Scope, cpu: Cpu, x: Tensor, name: str, weight: torch.Tensor, bias: torch.Tensor | None, epilogue: Epilogue
) -> Tensor:
    """``x @ weight^T + bias`` in float32; ``weight`` [N, K], ``name`` says which one it is."""
    rows, width = tile_of(cpu)
    depth, outs = x.shape[-1], int(weight.shape[0])
    panels = s.pack(f"{name}:panels{width}", lambda: packed_panels(weight, width))
    assert isinstance(depth, int)
    count: Dim = 1
    for dim in x.shape[:-1]:
        count = count * dim
    inputs = [s.reshape(x, (count, depth)), panels]
    if bias is not None:
        inputs.append(_padded_bias(s, name, bias, panels))
    if epilogue.residual is not None:
        inputs.append(s.reshape(epilogue.residual, (count, outs)))

    def build(k: Kernel, a: Any, b: Any, *rest: Any) -> None:
        more = list(rest)
        start = more.pop(0) if bias is not None else None
        added = more.pop(0) if epilogue.residual is not None else None
        out = more.pop(0)

        def tile(panel: Any, row: Any, height: int, vectors: int, finish: Callable[[Tile], None]) -> None:
            lanes = cpu.lanes
            acc = Tile(height, vectors, lanes)
            for i in range(height):
                for j in range(vectors):
                    acc[i, j] = number(0, lanes) if start is None else read(start, [panel, j * lanes], lanes)
            with serial(depth) as step:
                for i in range(height):
                    for j in range(vectors):
                        acc[i, j] = acc[i, j] + spread(a[row + i, step], lanes) * read(
                            b, [panel, step, j * lanes], lanes
                        )
            finish(acc)

        walk(k.dim(count), outs, width, rows, cpu.lanes, tile, store(out, epilogue.activation, added, width))

    made = s.kernel("gemm", build, inputs, [(torch.float32, (count, outs))])[0]
    return s.reshape(made, (*x.shape[:-1], outs))


def _padded_bias(s: Scope, name: str, bias: torch.Tensor, panels: Tensor) -> Tensor:
    count, width = int(panels.shape[0]), int(panels.shape[-1])  # type: ignore[arg-type]

    def make() -> torch.Tensor:
        padded = torch.zeros(count * width)
        padded[: bias.numel()] = bias
        return padded.reshape(count, width)

    return s.pack(f"{name}:bias{width}", make)


def store(out: Any, activation: Callable[[Any], Any] | None, added: Any, width: int) -> Any:
    """Write a finished tile: ``(tile, row, panel, columns, transform)``."""

    def run(
        acc: Tile, row: Any, panel: Any, columns: int, change: Callable[[Any, int, int], Any] | None = None
    ) -> None:
        lanes = acc.lanes
        for i in range(acc.rows):
            for j in range(acc.vectors):
                value = acc[i, j]
                if change is not None:
                    value = change(value, i, j)
                inside = min(lanes, columns - j * lanes)
                place = panel * width + j * lanes
                if activation is not None:
                    value = activation(value)
                if inside == lanes:
                    if added is not None:
                        value = value + read(added, [row + i, place], lanes)
                    write(out, value, [row + i, place], lanes)
                    continue
                acc[i, j] = value
                for lane in range(inside):
                    one = acc.lane((i, j), lane)
                    write(out, one if added is None else one + added[row + i, place + lane], [row + i, place + lane], 1)

    return run


def walk(count: Any, outs: int, width: int, rows: int, lanes: int, tile: Any, finish: Any) -> None:
    """Tasks of a panel and a block of rows; what is left of rows and outputs gets smaller tiles.

    Args:
        count: rows, an expression.
        outs: outputs.
        width: outputs of a panel.
        rows: of a full tile.
        lanes: of a vector.
        tile: ``(panel, row, rows, vectors, finish(tile))`` accumulates.
        finish: as ``store`` gives it.
    """
    from tvm import tirx

    full, left = divmod(outs, width)
    block = max(rows, _BLOCK // rows * rows)
    blocks = tirx.floordiv(count + (block - 1), index(block))

    def panel_rows(panel: Any, first: Any, columns: int) -> None:
        vectors = -(-columns // lanes)
        end = tirx.min(first + block, count)
        height = end - first
        with serial(tirx.floordiv(height, index(rows))) as i:
            row = first + i * rows
            tile(panel, row, rows, vectors, lambda acc: finish(acc, row, panel, columns))
        done = first + tirx.floordiv(height, index(rows)) * rows
        for size in _smaller(rows):
            with serial(tirx.floordiv(end - done, index(size))) as i:
                row = done + i * size
                tile(panel, row, size, vectors, lambda acc, row=row: finish(acc, row, panel, columns))
            done = done + tirx.floordiv(end - done, index(size)) * size

    if full:
        with parallel(blocks * full) as task:
            panel, first = tirx.floordiv(task, blocks), tirx.floormod(task, blocks) * block
            panel_rows(panel, first, width)
    if left:
        with parallel(blocks) as task:
            panel_rows(index(full), task * block, left)


def _smaller(rows: int) -> Sequence[int]:
    """Heights of the tiles for what is left: halves."""
    found, size = [], 1
    while size < rows:
        found.append(size)
        size *= 2
    return found[::-1]


def serial(stop: Any) -> Any:
    """A loop from zero."""
    from tvm.tirx.script.builder import ir as I  # noqa: N812

    return I.serial(index(0), index(stop) if isinstance(stop, int) else stop)


def parallel(stop: Any) -> Any:
    """A loop from zero over the threads."""
    from tvm.tirx.script.builder import ir as I  # noqa: N812

    return I.parallel(index(0), index(stop) if isinstance(stop, int) else stop)
