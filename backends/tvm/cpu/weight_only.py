"""Products of float rows by weights of few bits, made float in registers: int4 in blocks, int8 per output.

int4: panels ``[panel, k / 2, width]`` of bytes, the earlier k in the low half, kept as ``q + 8``; the scales of a block
are a vector of outputs ``[panel, block, width]``. int8: panels ``[panel, k, width]``; the scale is applied at the end.
A weight becomes float once per tile of rows, so memory moves an eighth (a quarter) of the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from backends.tvm.cpu.build import Tile, number, read, spread
from backends.tvm.cpu.gemm import Epilogue, packed_panels, serial, store, tile_of, walk
from backends.tvm.cpu.rows import count_of
from backends.tvm.cpu.target import Cpu
from backends.tvm.scope import Kernel, Scope, Tensor

_F32 = torch.float32


def packed_int4(packed: torch.Tensor, width: int) -> torch.Tensor:
    """u8 [N, K/2] of two's complement halves as panels [ceil(N / width), K/2, width] of halves plus 8."""
    return packed_panels(packed ^ 0x88, width)  # two's complement to excess 8: the top bit of each half turns


def linear_int4(
    s: Scope,
    cpu: Cpu,
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    block: int,
    bias: torch.Tensor | None,
    epilogue: Epilogue,
) -> Tensor:
    """``x @ (q * scale)^T + bias``; ``packed`` [N, K/2] and ``scale`` [N, K/block] are weights."""
    from tvm import tirx

    codes, steps = (s.emission.graph.weights[t.param] for t in (packed, scale))
    width, lanes = tile_of(cpu)[1], cpu.lanes
    held = s.pack(f"{packed.param}:int4x{width}", lambda: packed_int4(codes, width))
    factors = s.pack(f"{scale.param}:blocks{width}", lambda: packed_panels(steps.float(), width))

    def products(acc: Tile, panel: Any, row: Any, a: Any, b: Any, by: Any) -> None:
        with serial(steps.shape[1]) as part:
            factor = Tile(1, acc.vectors, lanes)
            for j in range(acc.vectors):
                factor[0, j] = read(by, [panel, part, j * lanes], lanes)
            with serial(block // 2) as pair:
                at = part * (block // 2) + pair
                both = Tile(2, acc.vectors, lanes)
                for j in range(acc.vectors):
                    wide = tirx.Cast(_of("int32", lanes), read(b, [panel, at, j * lanes], lanes))
                    for half in range(2):
                        code = (wide >> number(4 * half, lanes, "int32")) & number(15, lanes, "int32")
                        value = tirx.Cast(_of("float32", lanes), code - number(8, lanes, "int32"))
                        both[half, j] = value * factor[0, j]
                for half in range(2):
                    for i in range(acc.rows):
                        for j in range(acc.vectors):
                            acc[i, j] = acc[i, j] + spread(a[row + i, at * 2 + half], lanes) * both[half, j]

    return _linear(
        s, cpu, "int4_gemm", packed.param, x, held, factors, int(codes.shape[0]), bias, epilogue, products, None
    )


def linear_int8(
    s: Scope, cpu: Cpu, x: Tensor, weight: Tensor, scale: Tensor, bias: torch.Tensor | None, epilogue: Epilogue
) -> Tensor:
    """``(x @ q^T) * scale + bias``; ``weight`` i8 [N, K] and ``scale`` [N] are weights."""
    from tvm import tirx

    codes, steps = (s.emission.graph.weights[t.param] for t in (weight, scale))
    width, lanes = tile_of(cpu)[1], cpu.lanes
    held = s.pack(f"{weight.param}:only{width}", lambda: packed_panels(codes, width))
    factors = s.pack(f"{scale.param}:outs{width}", lambda: packed_panels(steps.float().reshape(-1, 1), width))

    def products(acc: Tile, panel: Any, row: Any, a: Any, b: Any, by: Any) -> None:
        with serial(codes.shape[1]) as step:
            wide = Tile(1, acc.vectors, lanes)
            for j in range(acc.vectors):
                wide[0, j] = tirx.Cast(_of("float32", lanes), read(b, [panel, step, j * lanes], lanes))
            for i in range(acc.rows):
                for j in range(acc.vectors):
                    acc[i, j] = acc[i, j] + spread(a[row + i, step], lanes) * wide[0, j]

    def scaled(by: Any, panel: Any, j: int, value: Any) -> Any:
        return value * read(by, [panel, 0, j * lanes], lanes)

    return _linear(
        s,
        cpu,
        "int8_weight_gemm",
        weight.param,
        x,
        held,
        factors,
        int(codes.shape[0]),
        bias,
        epilogue,
        products,
        scaled,
    )


def _linear(
    s: Scope, cpu: Cpu, name: str, label: str, x: Tensor, held: Tensor, factors: Tensor, outs: int,
    bias: torch.Tensor | None, epilogue: Epilogue, products: Any, scaled: Any,
) -> Tensor:  # fmt: skip
    rows, width = tile_of(cpu)
    count, depth, lanes = count_of(x.shape[:-1]), x.shape[-1], cpu.lanes
    inputs = [s.reshape(x, (count, depth)), held, factors]
    if bias is not None:
        inputs.append(s.pack(f"{label}:bias{width}", lambda: packed_panels(bias.reshape(-1, 1), width).squeeze(1)))
    if epilogue.residual is not None:
        inputs.append(s.reshape(epilogue.residual, (count, outs)))

    def build(k: Kernel, a: Any, b: Any, by: Any, *rest: Any) -> None:
        more = list(rest)
        start = more.pop(0) if bias is not None else None
        added = more.pop(0) if epilogue.residual is not None else None
        out = more.pop(0)

        def tile(panel: Any, row: Any, height: int, vectors: int, finish: Callable[[Any], None]) -> None:
            acc = Tile(height, vectors, lanes)
            for i in range(height):
                for j in range(vectors):
                    acc[i, j] = number(0, lanes)
            products(acc, panel, row, a, b, by)
            for i in range(height):
                for j in range(vectors):
                    value = acc[i, j] if scaled is None else scaled(by, panel, j, acc[i, j])
                    acc[i, j] = value if start is None else value + read(start, [panel, j * lanes], lanes)
            finish(acc)

        walk(k.dim(count), outs, width, rows, lanes, tile, store(out, epilogue.activation, added, width))

    made = s.kernel(name, build, inputs, [(_F32, (count, outs))])[0]
    return s.reshape(made, (*x.shape[:-1], outs))


def _of(name: str, lanes: int) -> str:
    return name if lanes == 1 else f"{name}x{lanes}"
