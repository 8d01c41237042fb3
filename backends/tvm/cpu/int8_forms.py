"""The int8 linears of the IR, with the kernels of ``int8``: one quantization for all that read an activation alike."""

from __future__ import annotations

from typing import Any

import torch

from backends.tvm import quantized as neutral
from backends.tvm.cpu import int8
from backends.tvm.cpu.fusion import epilogue_of
from backends.tvm.cpu.int8 import Steps
from backends.tvm.cpu.target import Cpu
from backends.tvm.scope import Scope, Tensor
from ir import Arg, Node, Value

_F32 = torch.float32


def linear_static(
    s: Scope, cpu: Cpu, node: Node, x: Value, weight: Value, scale: Value, bias: Arg, x_scale: Value, x_zero: int
) -> Tensor:
    """``penstock.int8_linear_static``."""
    by = s.weight(x_scale)
    if by is None or not _fits(s, x, weight, scale, bias):
        return neutral.int8_linear_static(s, node, x, weight, scale, bias, x_scale, x_zero)
    key = ("int8", s[x], by.numpy().tobytes(), x_zero)
    made = s.kept(key, lambda: (int8.quantized(s, cpu, s[x], Steps(s[x_scale], x_zero)), Steps(s[x_scale], x_zero)))
    return _finish(s, cpu, node, made, weight, scale, bias)


def linear_dynamic(s: Scope, cpu: Cpu, node: Node, x: Value, weight: Value, scale: Value, bias: Arg = None) -> Tensor:
    """``penstock.int8_linear_dynamic``."""
    if not _fits(s, x, weight, scale, bias):
        return neutral.int8_linear_dynamic(s, node, x, weight, scale, bias)

    def make() -> tuple[Tensor, Steps]:
        steps = Steps(range_=int8.measured(s, cpu, s[x]))
        return int8.quantized(s, cpu, s[x], steps), steps

    return _finish(s, cpu, node, s.kept(("int8", s[x]), make), weight, scale, bias)


def _fits(s: Scope, x: Value, weight: Value, scale: Value, bias: Arg) -> bool:
    known = [s.weight(v) for v in (weight, scale, bias) if isinstance(v, Value)]
    tensor = s[x]
    width = tensor.shape[-1] if tensor.rank else None
    return all(w is not None for w in known) and tensor.dtype == _F32 and isinstance(width, int)


def _finish(s: Scope, cpu: Cpu, node: Node, found: Any, weight: Value, scale: Value, bias: Arg) -> Tensor:
    q, steps = found
    by, added = s.weight(scale), s.weight(bias) if isinstance(bias, Value) else None
    assert by is not None
    epilogue, ahead = epilogue_of(s, node)
    made = int8.linear(s, cpu, q, steps, s[weight], by, added, epilogue)
    made = s.reshape(made, node.results[0].tensor.shape)
    for later in ahead:
        s.ahead[later] = [made]
    return made
