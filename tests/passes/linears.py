"""Two linears in a row, in float32 or as cast-compute leaves them, with weights that any format can hold or none."""

from __future__ import annotations

import torch

from ir import Graph
from tests.passes.case import read

_TWO = """
    dim n [1, 64]
    param %w: T[96, 64] "up.weight"
    param %b: T[96] "up.bias"
    param %v: T[64, 96] "down.weight"
    input %x: T[n, 64] "x"
    %h: T[n, 96] = aten.linear.default(%x, %w, %b)  # up @ model.py:1
    %g: T[n, 96] = aten.relu.default(%h)
    %y: T[n, 64] = aten.linear.default(%g, %v)  # down @ model.py:2
    return "y" %y
    """


def weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {"up.weight": torch.randn(96, 64) / 8, "up.bias": torch.randn(96), "down.weight": torch.randn(64, 96) / 9}
    return {name: w.to(dtype) for name, w in made.items()}


def two(given: dict[str, torch.Tensor]) -> Graph:
    half = next(iter(given.values())).dtype is torch.float16
    return read(_TWO.replace("T[", "f16[" if half else "f32["), given)


def samples(dtype: torch.dtype = torch.float32, count: int = 3) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    return [{"x": torch.randn(40, 64).to(dtype)} for _ in range(count)]
