"""Operators in other words: traced through, so that inductor fuses them and the library calls nothing of ours.

Our own ones, and those of torch that inductor 2.13 lowers to something else than they mean.

Integer products want signed activations: uint8 ``q`` goes in as ``q - 128``, and the sum of each row of the weights
makes up for it. Those sums are constants; ``prepare`` hands them in as ``row_sums``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ir import narrow, own_ops

_DOMAIN = "penstock."


SHIFTED = frozenset({"penstock.int8_linear_static.default", "penstock.int8_linear_dynamic.default"})
"""Operators whose form takes ``row_sums``, on the CPU."""


def has_form(name: str) -> bool:
    """Whether an operator of ours can be traced through."""
    return name in forms("cpu")


def forms(kind: str) -> Mapping[str, Callable[..., Any]]:
    """Operator name to the function that is traced in its place.

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
    meanings |= {f"aten.floor_divide.{overload}": floor_divide for overload in ("default", "Scalar")}
    meanings |= {f"aten.div.{overload}_mode": div_mode for overload in ("Tensor", "Scalar")}
    meanings |= {f"aten.remainder.{overload}": remainder for overload in ("Tensor", "Scalar", "Scalar_Tensor")}
    meanings["aten.threshold.default"] = threshold
    if kind == "cpu":
        meanings[f"{_DOMAIN}int8_linear_static.default"] = int8_linear_static
        meanings[f"{_DOMAIN}int8_linear_dynamic.default"] = int8_linear_dynamic
    return meanings


def div_mode(a: Tensor, b: Tensor | float, rounding_mode: str | None = None) -> Tensor:
    """``torch.div`` with rounding."""
    return floor_divide(a, b) if rounding_mode == "floor" else torch.div(a, b, rounding_mode=rounding_mode)


def floor_divide(a: Tensor, b: Tensor | float) -> Tensor:
    """``torch.floor_divide``: of floats by the remainder, as in Python; inductor takes ``floor(a / b)``.

    The two differ where ``a`` is about a multiple of ``b``: 7 // 0.1 is 69.
    """
    dtype = torch.result_type(a, b)
    if not dtype.is_floating_point:
        return torch.floor_divide(a, b)
    x, y = _wide(a, a, dtype), _wide(b, a, dtype)
    rest = torch.fmod(x, y)
    quotient = (x - rest) / y
    quotient = torch.where((rest != 0) & ((y < 0) != (rest < 0)), quotient - 1, quotient)
    floor = torch.floor(quotient)
    floor = torch.where(quotient - floor > 0.5, floor + 1, floor)
    floor = torch.where(quotient == 0, torch.copysign(torch.zeros_like(quotient), x / y), floor)
    return torch.where(y == 0, x / y, floor).to(dtype)


def remainder(a: Tensor | float, b: Tensor | float) -> Tensor:
    """``torch.remainder``: of floats by ``fmod``, which is exact; inductor takes ``a - floor(a / b) * b``."""
    like = a if isinstance(a, Tensor) else b
    assert isinstance(like, Tensor)
    dtype = torch.result_type(a, b)
    if not dtype.is_floating_point:
        return torch.remainder(a, b)
    x, y = (_wide(v if isinstance(v, Tensor) else like.new_full((), v, dtype=dtype), like, dtype) for v in (a, b))
    rest = torch.fmod(x, y)
    return torch.where((rest != 0) & ((y < 0) != (rest < 0)), rest + y, rest).to(dtype)


def _wide(value: Tensor | float, like: Tensor, dtype: torch.dtype) -> Tensor:
    """What torch computes in: narrow floats as float32."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return value.to(wide) if isinstance(value, Tensor) else torch.full((), value, dtype=wide, device=like.device)


def threshold(x: Tensor, threshold: float, value: float) -> Tensor:
    """``torch.threshold``: of whole numbers without a detour through floats."""
    if x.dtype.is_floating_point:
        return torch.threshold(x, threshold, value)
    return torch.where(x <= int(threshold), int(value), x)


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
