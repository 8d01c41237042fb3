"""Our own operators in torch's: traced through, so that inductor fuses them and the library calls nothing of ours.

Integer products want signed activations: uint8 ``q`` goes in as ``q - 128``, and the sum of each row of the weights
makes up for it. Those sums are constants; ``prepare`` hands them in as ``row_sums``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from backends.inductor.mended import MENDED
from ir import narrow, own_ops

_DOMAIN = "penstock."


SHIFTED = frozenset({"penstock.int8_linear_static.default", "penstock.int8_linear_dynamic.default"})
"""Operators whose form takes ``row_sums``, on the CPU."""


def has_form(name: str) -> bool:
    """Whether an operator of ours can be traced through."""
    return name in forms("cpu")


def forms(kind: str) -> Mapping[str, Callable[..., Any]]:
    """Operator name to the function that is traced in its place; of torch's, those of ``MENDED``.

    On the CPU integer products run as ``_int_mm``. It asks for other sizes on CUDA, where the meaning itself, a float
    product of whole numbers, is traced.
    """
    meanings: dict[str, Callable[..., Any]] = {
        f"{_DOMAIN}{function.__name__}.default": function
        for function in (
            own_ops.quantize_rows,
            own_ops.int8_linear_dynamic,
            own_ops.int8_linear_static,
            own_ops.int8_attention,
            narrow.dequantize_int4,
            narrow.fp8_linear,
            narrow.nvfp4_linear,
        )
    }
    meanings |= MENDED
    if kind == "cpu":
        meanings[f"{_DOMAIN}int8_linear_static.default"] = int8_linear_static
        meanings[f"{_DOMAIN}int8_linear_dynamic.default"] = int8_linear_dynamic
    return meanings


def int8_linear_static(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    x_scale: Tensor,
    x_zero: int,
    row_sums: Tensor | None = None,
) -> Tensor:
    """``ir.own_ops.int8_linear_static`` by an integer product; equal up to the rounding of sums beyond 2**24."""
    shifted = (torch.round(x.float() / x_scale) + x_zero).clamp(0, 255) - 128
    total = _product(shifted, weight) + (128 - x_zero) * _sums(weight, row_sums)
    y = total.float() * scale
    return (y if bias is None else y + bias).to(x.dtype)


def int8_linear_dynamic(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, row_sums: Tensor | None = None
) -> Tensor:
    """``ir.own_ops.int8_linear_dynamic`` by an integer product."""
    low = x.amin().float().clamp_max(0.0)
    high = x.amax().float().clamp_min(0.0)
    step = (high - low) / 255.0
    step = torch.where(step == 0, torch.ones_like(step), step)
    zero = torch.round(-low / step).clamp(0, 255)
    shifted = (torch.round(x.float() / step) + zero).clamp(0, 255) - 128
    total = _product(shifted, weight) + (128 - zero).to(torch.int32) * _sums(weight, row_sums)
    y = total.float() * (step * scale)
    return (y if bias is None else y + bias).to(x.dtype)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """``x``: whole numbers in [-128, 127], ``[..., K]``; ``weight``: int8 ``[N, K]``; int32 ``[..., N]``."""
    rows = x.to(torch.int8).reshape(-1, x.shape[-1])
    return torch._int_mm(rows, weight.t()).reshape(*x.shape[:-1], weight.shape[0])


def _sums(weight: Tensor, known: Tensor | None) -> Tensor:
    return row_sums(weight) if known is None else known


def row_sums(weight: Tensor) -> Tensor:
    """int32 ``[N]`` of int8 ``[N, K]``: what a shift of the activations by one adds to each output."""
    return weight.sum(-1, dtype=torch.int32)
