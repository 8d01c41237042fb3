"""Operators of torch that inductor 2.13 lowers to something else than they mean, in words that it gets right.

Each was found by the conformance suite, whose cells hold it: a form that is not needed any more can go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_NARROW = (torch.bfloat16, torch.float16)


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
    plain = x / y
    # of numbers so far apart the vectorized fmod is NaN
    return torch.where((y == 0) | (x.isfinite() & plain.isinf()), plain, floor).to(dtype)


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


def any_(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``torch.any``, which gives uint8 of uint8."""
    return (
        torch.any(x != 0, *args, **kwargs).to(torch.uint8) if x.dtype == torch.uint8 else torch.any(x, *args, **kwargs)
    )


def argmin(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """``torch.argmin``: the first of equals also where they are bytes."""
    return torch.argmin(_ordered(x), dim, keepdim)


def min_dim(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """``torch.min`` along an axis: the place of the first of equals also where they are truth values."""
    values, places = torch.min(_ordered(x), dim, keepdim)
    return values.to(x.dtype), places


def _ordered(x: Tensor) -> Tensor:
    return x.to(torch.int32) if x.dtype in (torch.bool, torch.uint8) else x


def index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, alpha: float = 1) -> Tensor:
    """``torch.index_add``: truth values are or-ed, narrow floats added in float32."""
    if x.dtype == torch.bool:
        added = torch.index_add(x.to(torch.int64), dim, index, source.to(torch.int64), alpha=int(bool(alpha)))
        return added != 0
    if x.dtype in _NARROW:
        return torch.index_add(x.float(), dim, index, source.float(), alpha=alpha).to(x.dtype)
    return torch.index_add(x, dim, index, source, alpha=alpha)


def einsum(equation: str, tensors: Sequence[Tensor], *, path: Sequence[int] | None = None) -> Tensor:
    """``torch.einsum``: products of whole numbers keep their width, which a sum of products does not."""
    found: Tensor = torch.ops.aten.einsum.default(equation, tensors, path=path)
    if found.dtype.is_floating_point:
        return found
    wide = [t.to(torch.int64) for t in tensors]
    return torch.ops.aten.einsum.default(equation, wide, path=path).to(found.dtype)


MENDED: Mapping[str, Callable[..., Any]] = {
    **{f"aten.floor_divide.{overload}": floor_divide for overload in ("default", "Scalar")},
    **{f"aten.div.{overload}_mode": div_mode for overload in ("Tensor", "Scalar")},
    **{f"aten.remainder.{overload}": remainder for overload in ("Tensor", "Scalar", "Scalar_Tensor")},
    **{f"aten.any.{overload}": any_ for overload in ("default", "dim", "dims")},
    "aten.einsum.default": einsum,
    "aten.threshold.default": threshold,
    "aten.argmin.default": argmin,
    "aten.min.dim": min_dim,
    "aten.index_add.default": index_add,
}
"""Operator name to the function that is traced in its place."""
