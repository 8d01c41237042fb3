"""Products of uint8 activations by int8 weights in int32, exact, with quantization before and scales after.

Weights lie in panels of ``group`` neighbours in k: 4 for VNNI (``vpdpbusd``), 2 for AVX2 and AVX512 without it
(``pmaddwd`` on 16 bits), 1 elsewhere. Activations are quantized once for all products that read them. The zero point is
taken out by the sums of the weights: ``sum (q - z) w = sum q w - z sum w``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from backends.tvm.cpu.build import Tile, index, number, ramp, read, spread, write
from backends.tvm.cpu.gemm import Epilogue, parallel, serial, store, tile_of, walk
from backends.tvm.cpu.rows import count_of
from backends.tvm.cpu.target import Cpu
from backends.tvm.scope import Kernel, Scope, Tensor

_F32, _I32 = torch.float32, torch.int32


@dataclass(frozen=True)
class Steps:
    """How activations are quantized: ``range_`` is f32 [2] (step, zero) when measured, else both are known.

    Attributes:
        step: f32 [] or [k], a weight.
        zero: of uint8.
        range_: measured while it runs.
    """

    step: Tensor | None = None
    zero: int = 0
    range_: Tensor | None = None


def group_of(cpu: Cpu) -> int:
    """Neighbours in k that one instruction multiplies."""
    return {"amx": 4, "vnni": 4, "avx512": 2, "avx2": 2}.get(cpu.level, 1)


def measured(s: Scope, cpu: Cpu, x: Tensor) -> Tensor:
    """Step and zero point of a whole tensor as f32 [2], over ``[min(x, 0), max(x, 0)]``."""
    from tvm import tirx

    count, width = count_of(x.shape[:-1]), x.shape[-1]
    assert isinstance(width, int)
    lanes = cpu.lanes
    flat = s.reshape(x, (count, width))

    def per_row(k: Kernel, a: Any, out: Any) -> None:
        with parallel(k.dim(count)) as row:
            acc, one = Tile(1, 2, lanes), Tile(1, 2, 1)
            acc[0, 0] = acc[0, 1] = number(0, lanes)
            one[0, 0] = one[0, 1] = number(0)
            with serial(width // lanes) as j:
                value = read(a, [row, j * lanes], lanes)
                acc[0, 0], acc[0, 1] = tirx.min(acc[0, 0], value), tirx.max(acc[0, 1], value)
            for lane in range(lanes):
                one[0, 0] = tirx.min(one[0, 0], acc.lane((0, 0), lane))
                one[0, 1] = tirx.max(one[0, 1], acc.lane((0, 1), lane))
            for column in range(width // lanes * lanes, width):
                value = a[row, column]
                one[0, 0], one[0, 1] = tirx.min(one[0, 0], value), tirx.max(one[0, 1], value)
            write(out, one[0, 0], [row, index(0)], 1)
            write(out, one[0, 1], [row, index(1)], 1)

    rows = s.kernel("int8_range", per_row, [flat], [(_F32, (count, 2))])[0]

    def together(k: Kernel, a: Any, out: Any) -> None:
        with serial(1):
            one = Tile(1, 2, 1)
            one[0, 0] = one[0, 1] = number(0)
            with serial(k.dim(count)) as row:
                one[0, 0] = tirx.min(one[0, 0], a[row, 0])
                one[0, 1] = tirx.max(one[0, 1], a[row, 1])
            one[0, 1] = (one[0, 1] - one[0, 0]) / number(255)
            one[0, 1] = tirx.Select(one[0, 1] == number(0), number(1), one[0, 1])
            zero = tirx.nearbyint((number(0) - one[0, 0]) / one[0, 1])
            write(out, one[0, 1], [index(0)], 1)
            write(out, tirx.max(tirx.min(zero, number(255)), number(0)), [index(1)], 1)

    return s.kernel("int8_step", together, [rows], [(_F32, (2,))])[0]


def quantized(s: Scope, cpu: Cpu, x: Tensor, steps: Steps) -> Tensor:
    """Rows as uint8, zeros up to a multiple of 16 of them: int32 [rows, words], four numbers a word."""
    from tvm import tirx

    count, width = count_of(x.shape[:-1]), x.shape[-1]
    assert isinstance(width, int)
    padded = -(-width // 16) * 16
    inputs = [s.reshape(x, (count, width))]
    inputs.append(steps.range_ if steps.range_ is not None else steps.step)  # type: ignore[arg-type]

    def build(k: Kernel, a: Any, by: Any, out: Any) -> None:
        def bits(value: Any, step: Any, zero: Any, lanes: int) -> Any:
            made = tirx.nearbyint(value / step) + zero
            made = tirx.max(tirx.min(made, number(255, lanes)), number(0, lanes))
            return tirx.Cast(_wide("uint8", lanes), tirx.Cast(_wide("int32", lanes), made))

        def step_at(column: Any, lanes: int) -> tuple[Any, Any]:
            if steps.range_ is not None:
                return spread(by[0], lanes), spread(by[1], lanes)
            step = read(by, [column], lanes) if steps.step is not None and steps.step.rank else spread(by[()], lanes)
            return step, number(steps.zero, lanes)

        with parallel(k.dim(count)) as row:
            with serial(width // 16) as j:
                made = bits(read(a, [row, j * 16], 16), *step_at(j * 16, 16), 16)
                write(out, tirx.reinterpret("int32x4", made), [row, j * 4], 4)
            for word in range(width // 16 * 4, padded // 4):
                total = tirx.const(0, "int32")
                for byte in range(4):
                    column = word * 4 + byte
                    if column < width:
                        one = bits(a[row, column], *step_at(index(column), 1), 1)
                        total = total | (tirx.Cast("int32", one) << tirx.const(8 * byte, "int32"))
                write(out, total, [row, index(word)], 1)

    return s.kernel("int8_quantize", build, inputs, [(_I32, (count, padded // 4))])[0]


def _wide(name: str, lanes: int) -> str:
    return name if lanes == 1 else f"{name}x{lanes}"


def packed_weight(weight: torch.Tensor, width: int, group: int) -> torch.Tensor:
    """int8 [N, K] as panels [ceil(N / width), K' / group, width * group], K' a multiple of 16."""
    outs, depth = weight.shape
    panels, deep = -(-outs // width), -(-depth // 16) * 16
    padded = torch.zeros(panels * width, deep, dtype=torch.int8)
    padded[:outs, :depth] = weight
    split = padded.reshape(panels, width, deep // group, group).transpose(1, 2)
    return split.reshape(panels, deep // group, width * group).contiguous()


def linear(
    s: Scope, cpu: Cpu, q: Tensor, steps: Steps, weight: Tensor, scale: torch.Tensor, bias: torch.Tensor | None,
    epilogue: Epilogue,
) -> Tensor:  # fmt: skip
    """``((q - zero) @ weight^T) * scale + bias`` in float32, [rows, outs]."""
    from tvm import tirx

    content = s.emission.graph.weights[weight.param]
    rows, width = tile_of(cpu)
    group, lanes, outs = group_of(cpu), cpu.lanes, int(content.shape[0])
    name = weight.param
    panels = s.pack(f"{name}:int8x{group}x{width}", lambda: packed_weight(content, width, group))
    count, words = q.shape[0], q.shape[1]
    assert isinstance(words, int)
    deep, many = words * 4, int(panels.shape[0])  # type: ignore[arg-type]
    sums = content.to(torch.int32).sum(1, dtype=torch.int32)
    start = sums if steps.range_ is not None else sums * -steps.zero

    def vector(tensor: torch.Tensor) -> torch.Tensor:
        padded = torch.zeros(many * width, dtype=tensor.dtype)
        padded[:outs] = tensor
        return padded.reshape(many, width)

    first_, by_ = (s.pack(f"{name}:{w}{width}", lambda t=t: vector(t)) for w, t in (("start", start), ("scale", scale)))
    inputs = [q, panels, first_, by_]
    if bias is not None:
        inputs.append(s.pack(f"{name}:bias{width}", lambda: vector(bias)))
    if steps.range_ is not None:
        inputs.append(steps.range_)
    if epilogue.residual is not None:
        inputs.append(s.reshape(epilogue.residual, (count, outs)))

    def build(k: Kernel, a: Any, b: Any, first: Any, by: Any, *rest: Any) -> None:
        more = list(rest)
        added = more.pop(0) if bias is not None else None
        measure = more.pop(0) if steps.range_ is not None else None
        residual = more.pop(0) if epilogue.residual is not None else None
        out = more.pop(0)

        def tile(panel: Any, row: Any, height: int, vectors: int, finish: Callable[[Any], None]) -> None:
            acc = Tile(height, vectors, lanes, "int32")
            for i in range(height):
                for j in range(vectors):
                    known = measure is None
                    acc[i, j] = read(first, [panel, j * lanes], lanes) if known else number(0, lanes, "int32")
            _accumulate(acc, a, b, panel, row, deep, group)
            made = Tile(height, vectors, lanes)
            for i in range(height):
                for j in range(vectors):
                    total = acc[i, j]
                    factor = read(by, [panel, j * lanes], lanes)
                    if measure is not None:
                        zero = spread(tirx.Cast("int32", measure[1]), lanes)
                        total = total - zero * read(first, [panel, j * lanes], lanes)
                        factor = factor * spread(measure[0], lanes)
                    value = tirx.Cast(_wide("float32", lanes), total) * factor
                    made[i, j] = value if added is None else value + read(added, [panel, j * lanes], lanes)
            finish(made)

        walk(k.dim(count), outs, width, rows, lanes, tile, store(out, epilogue.activation, residual, width))

    return s.kernel("int8_gemm", build, inputs, [(_F32, (count, outs))])[0]


def _accumulate(acc: Tile, a: Any, b: Any, panel: Any, row: Any, deep: int, group: int) -> None:
    """Add the products of a tile."""
    from tvm import tirx

    lanes = acc.lanes

    def weights(step: Any, j: int) -> Any:
        return b[(panel, step, ramp(j * lanes * group, lanes * group))]

    if group == 4:
        with serial(deep // 4) as step:
            for i in range(acc.rows):
                four = tirx.reinterpret(f"int8x{4 * lanes}", spread(a[row + i, step], lanes))
                for j in range(acc.vectors):
                    acc[i, j] = _intrinsic(
                        f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", acc[i, j].ty.dtype, acc[i, j], four, weights(step, j)
                    )
        return
    with serial(deep // 4) as word:
        for part in range(4 // group):
            step = word * (4 // group) + part
            for i in range(acc.rows):
                bits = a[row + i, word]
                low = (bits >> tirx.const(8 * group * part, "int32")) & tirx.const(255, "int32")
                for j in range(acc.vectors):
                    if group == 1:
                        value = tirx.Cast(_wide("int32", lanes), weights(step, j))
                        acc[i, j] = acc[i, j] + spread(low, lanes) * value
                        continue
                    high = (bits >> tirx.const(8 * (group * part + 1), "int32")) & tirx.const(255, "int32")
                    pair = spread(low | (high << tirx.const(16, "int32")), lanes)
                    left = tirx.reinterpret(f"int16x{2 * lanes}", pair)
                    right = tirx.Cast(f"int16x{2 * lanes}", weights(step, j))
                    name = "llvm.x86.avx512.pmaddw.d.512" if lanes == 16 else "llvm.x86.avx2.pmadd.wd"
                    acc[i, j] = acc[i, j] + _intrinsic(name, acc[i, j].ty.dtype, left, right)


def _intrinsic(name: str, dtype: Any, *args: Any) -> Any:
    from tvm import tirx

    return tirx.call_llvm_pure_intrin(str(dtype), name, *args)
