"""Convolutions as products: windows become rows, the kernel a weight. Grouped ones stay sums over windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from backends.arguments import many
from backends.tvm import convolutions as neutral
from backends.tvm.cpu import gemm
from backends.tvm.cpu.gemm import Epilogue
from backends.tvm.cpu.target import Cpu
from backends.tvm.scope import Kernel, Scope, Tensor
from backends.tvm.views import moved
from ir import Arg, Node, Value

_F32 = torch.float32


def convolution(
    s: Scope, cpu: Cpu, node: Node, x: Value, weight: Value, bias: Arg = None, stride: Arg = 1, padding: Arg = 0,
    dilation: Arg = 1, groups: Arg = 1,
) -> Tensor:  # fmt: skip
    """``conv1d``, ``conv2d`` over one group of float32 channels."""
    content, added = s.weight(weight), s.weight(bias) if isinstance(bias, Value) else None
    if groups != 1 or content is None or content.dtype != _F32 or (bias is not None and added is None):
        spatial = weight.tensor.rank - 2
        made: Tensor = neutral.convolution(spatial)(s, node, x, weight, bias, stride, padding, dilation, groups)
        return made
    rows = _windows(s, node, x, [int(n) for n in content.shape], stride, padding, dilation)
    matrix = content.flatten(1)
    flat = gemm.linear(s, cpu, rows, f"{s[weight].param}:kernel", matrix, added, Epilogue())
    shape = node.results[0].tensor.shape
    full = shape if len(shape) == content.ndim else (1, *shape)
    turned = (full[0], *full[2:], full[1])

    def move(k: Kernel, index: Sequence[Any]) -> Sequence[Any]:
        return [index[0], *index[2:], index[1]]

    return s.reshape(moved(s, "channels_first", s.reshape(flat, turned), full, move), shape)


def any_convolution(
    s: Scope, cpu: Cpu, node: Node, x: Value, weight: Value, bias: Arg, stride: Arg, padding: Arg, dilation: Arg,
    is_transposed: Arg, output_padding: Arg, groups: Arg, *_: Arg,
) -> Tensor:  # fmt: skip
    """``aten.convolution``."""
    if is_transposed or weight.tensor.rank > 4:
        args = (x, weight, bias, stride, padding, dilation, is_transposed, output_padding, groups)
        return neutral.any_convolution(s, node, *args)
    return convolution(s, cpu, node, x, weight, bias, stride, padding, dilation, groups)


def _windows(s: Scope, node: Node, x: Value, kernel: Sequence[int], stride: Arg, padding: Arg, dilation: Arg) -> Tensor:
    """[batch, out sizes, channels * window]: what each output is a product of, zeros beyond the edges."""
    from tvm import tirx

    spatial = len(kernel) - 2
    size, reach, by = kernel[2:], many(dilation, spatial), many(stride, spatial)
    if padding == "same":
        before = [d * (n - 1) // 2 for d, n in zip(reach, size, strict=True)]
    else:
        before = many(0 if padding == "valid" else padding, spatial, 0)
    tensor = s[x] if s[x].rank == spatial + 2 else s.reshape(s[x], (1, *s[x].shape))
    out = node.results[0].tensor.shape[-spatial:]
    depth = kernel[1]
    for n in size:
        depth *= n

    def body(k: Kernel, index: Sequence[Any], t: Any) -> Any:
        taps: list[Any] = []
        rest = index[-1]
        for n in reversed(size):
            taps.insert(0, tirx.floormod(rest, n))
            rest = tirx.floordiv(rest, n)
        places = [a * st - p + q * d for a, st, p, q, d in zip(index[1:-1], by, before, taps, reach, strict=True)]
        held = [
            test for a, n in zip(places, tensor.shape[2:], strict=True) for test in (a >= 0, a < k.dim(n))
        ]  # fmt: skip
        return tirx.if_then_else(tirx.all(*held), t(index[0], rest, *places), tirx.const(0, "float32"))

    return s.compute("windows", (tensor.shape[0], *out, depth), _F32, body, tensor)
