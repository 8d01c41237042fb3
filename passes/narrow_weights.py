"""Weights in int8, int4, e4m3 and NVFP4: for each group of weights the step where the squared error is least.

Plain tensors in and out; a weight that its format holds exactly comes back exactly. ``importance [K]`` weighs errors
by how strong the activation of each input channel is (AWQ, 2306.00978, section 3.2, searches its clips so).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from ir.narrow import (
    E2M1_MAX,
    E4M3_MAX,
    NVFP4_BLOCK,
    dequantize_int4,
    e2m1_codes,
    nvfp4_values,
    pack_halves,
    to_e2m1,
    to_e4m3,
)

_INT8_CLIPS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85)
_INT4_CLIPS = (1.0, 0.95, 0.9, 0.875, 0.85, 0.8, 0.75, 0.7, 0.65)
_E4M3_PLACES = (1.0, 1.19, 1.41, 1.68)  # where in its binade the largest falls
_E2M1_PLACES = (1.0, 0.94, 0.88, 0.8, 0.72, 1.5)  # 1.5: the largest becomes 4, not 6 (2512.02010)
_TINY = 1e-12


def best_steps(
    groups: torch.Tensor,
    steps: Iterable[torch.Tensor],
    rounded: Callable[[torch.Tensor], torch.Tensor],
    importance: torch.Tensor | None = None,
) -> torch.Tensor:
    """Of several steps ``[..., 1]`` the best for each of ``groups [..., G]``; a step of zero becomes one."""
    best: torch.Tensor | None = None
    least: torch.Tensor | None = None
    for tried in steps:
        step = torch.where(tried == 0.0, 1.0, tried)
        wrong = (rounded(groups / step) * step - groups).square()
        error = (wrong if importance is None else wrong * importance).sum(-1, keepdim=True)
        if best is None or least is None:
            best, least = step, error
        else:
            best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    assert best is not None
    return best


@dataclass(frozen=True)
class Int8Weight:
    """``q [N, K]`` int8 and ``scale [N]``: the weight is about ``q * scale``."""

    q: torch.Tensor
    scale: torch.Tensor

    def float(self) -> torch.Tensor:
        """What the weight became."""
        return self.q * self.scale[:, None]


@dataclass(frozen=True)
class Int4Weight:
    """``packed [N, K/2]`` u8 and ``scale [N, K/block]``, as ``penstock.dequantize_int4`` takes them."""

    packed: torch.Tensor
    scale: torch.Tensor
    block: int

    def float(self) -> torch.Tensor:
        """What the weight became."""
        return dequantize_int4(self.packed, self.scale, self.block).float()


@dataclass(frozen=True)
class Fp8Weight:
    """``q [N, K]`` e4m3 and ``scale [N]``."""

    q: torch.Tensor
    scale: torch.Tensor

    def float(self) -> torch.Tensor:
        """What the weight became."""
        return self.q.float() * self.scale[:, None]


@dataclass(frozen=True)
class Nvfp4Weight:
    """``q [N, K]`` values of e2m1, ``block_scale [N, K/16]`` e4m3, ``scale []``."""

    q: torch.Tensor
    block_scale: torch.Tensor
    scale: torch.Tensor

    @property
    def packed(self) -> torch.Tensor:
        """Two codes per byte."""
        return pack_halves(e2m1_codes(self.q))

    def float(self) -> torch.Tensor:
        """What the weight became."""
        return nvfp4_values(self.q, self.block_scale) * self.scale


def to_int8(weight: torch.Tensor, clips: Iterable[float] = _INT8_CLIPS) -> Int8Weight:
    """Symmetric int8 per row of ``weight [N, K]``, each row clipped at a fraction of its largest magnitude."""
    top = weight.abs().amax(1, keepdim=True).clamp_min(_TINY)
    step = best_steps(weight, (top * clip / 127.0 for clip in clips), _int8)
    return Int8Weight(_int8(weight / step).to(torch.int8).contiguous(), step[:, 0])


def to_int4(weight: torch.Tensor, block: int, dtype: torch.dtype, importance: torch.Tensor | None = None) -> Int4Weight:
    """Symmetric int4 with a scale of type ``dtype`` per block of ``weight [N, K]``."""
    groups = weight.unflatten(1, (-1, block))
    top = groups.abs().amax(-1, keepdim=True)
    steps = ((top * clip / 7.0).to(dtype).float() for clip in _INT4_CLIPS)
    weigh = None if importance is None else importance.unflatten(0, (-1, block))
    step = best_steps(groups, steps, _int4, weigh)
    return Int4Weight(pack_halves(_int4(groups / step).flatten(1)), step[..., 0].to(dtype), block)


def to_fp8(weight: torch.Tensor) -> Fp8Weight:
    """e4m3 with a scale per row of ``weight [N, K]``."""
    top = weight.abs().amax(1, keepdim=True).clamp_min(_TINY)
    step = best_steps(weight, (top * place / E4M3_MAX for place in _E4M3_PLACES), lambda x: to_e4m3(x).float())
    return Fp8Weight(to_e4m3(weight / step).contiguous(), step[:, 0])


def to_nvfp4(weight: torch.Tensor, importance: torch.Tensor | None = None) -> Nvfp4Weight:
    """NVFP4: e2m1 in blocks of 16 of ``weight [N, K]``."""
    scale = (weight.abs().amax() / (E2M1_MAX * E4M3_MAX)).clamp_min(_TINY)
    groups = (weight / scale).unflatten(1, (-1, NVFP4_BLOCK))
    top = groups.abs().amax(-1, keepdim=True)
    steps = (to_e4m3(top * place / E2M1_MAX).float() for place in _E2M1_PLACES)
    weigh = None if importance is None else importance.unflatten(0, (-1, NVFP4_BLOCK))
    step = best_steps(groups, steps, to_e2m1, weigh)
    return Nvfp4Weight(to_e2m1(groups / step).flatten(1), to_e4m3(step[..., 0]), scale)


def _int8(x: torch.Tensor) -> torch.Tensor:
    return x.round().clamp(-127, 127)


def _int4(x: torch.Tensor) -> torch.Tensor:
    return x.round().clamp(-8, 7)
