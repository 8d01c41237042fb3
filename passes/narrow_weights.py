"""Weights in int8, int4, e4m3 and NVFP4: for each group of weights the step where the squared error is least.

Plain tensors in and out; a weight that its format holds exactly comes back exactly. In four bits, rows of
activations also tell how to make up for what is lost (``compensation``).
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
_DAMPING = 0.1  # of the mean second moment: on MiniLM better than 0.01 and 0.5
_TINY = 1e-12


def best_steps(
    groups: torch.Tensor, steps: Iterable[torch.Tensor], rounded: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Of several steps ``[..., 1]`` the best for each of ``groups [..., G]``; a step of zero becomes one."""
    best: torch.Tensor | None = None
    least: torch.Tensor | None = None
    for tried in steps:
        step = torch.where(tried == 0.0, 1.0, tried)
        error = (rounded(groups / step) * step - groups).square().sum(-1, keepdim=True)
        if best is None or least is None:
            best, least = step, error
        else:
            best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    assert best is not None
    return best


def compensation(rows: torch.Tensor) -> torch.Tensor | None:
    """How the error of a weight is made up for by those of later channels, from activations ``rows [R, K]``.

    The upper Cholesky factor ``[K, K]`` of the inverse second moment (GPTQ, 2210.17323, sections 3.2 and 3.3), damped
    so that a thousand rows are enough. None when an activation is not finite.
    """
    wide = rows.double()
    moment = wide.t() @ wide / len(wide)
    if not moment.isfinite().all():
        return None
    moment.diagonal().add_(_DAMPING * moment.diagonal().mean() + _TINY)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment))
    return torch.linalg.cholesky(inverse, upper=True).float()


def _in_groups(
    weight: torch.Tensor,
    size: int,
    steps: Callable[[torch.Tensor], Iterable[torch.Tensor]],
    rounded: Callable[[torch.Tensor], torch.Tensor],
    factor: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``q [N, K]`` and a step ``[N, K/size]`` for each ``size`` of ``weight [N, K]``; ``steps`` lists those to try."""
    if factor is None:
        groups = weight.unflatten(1, (-1, size))
        step = best_steps(groups, steps(groups), rounded)
        return rounded(groups / step).flatten(1), step[..., 0]
    left, q, chosen = weight.clone(), torch.empty_like(weight), []
    for start in range(0, weight.shape[1], size):
        end = start + size
        group = left[:, start:end]  # a view: errors reach the weights after it
        step = best_steps(group, steps(group), rounded)
        errors = torch.empty_like(group)
        for at in range(size):
            row = factor[start + at, start:end]
            q[:, start + at] = rounded(group[:, at] / step[:, 0])
            errors[:, at] = (group[:, at] - q[:, start + at] * step[:, 0]) / row[at]
            group[:, at:] -= errors[:, at, None] * row[at:]
        left[:, end:] -= errors @ factor[start:end, end:]
        chosen.append(step)
    return q, torch.cat(chosen, 1)


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


def to_int4(weight: torch.Tensor, block: int, dtype: torch.dtype, factor: torch.Tensor | None = None) -> Int4Weight:
    """Symmetric int4 with a scale of type ``dtype`` per block of ``weight [N, K]``; ``factor``: of ``compensation``."""

    def steps(groups: torch.Tensor) -> Iterable[torch.Tensor]:
        top = groups.abs().amax(-1, keepdim=True)
        return ((top * clip / 7.0).to(dtype).float() for clip in _INT4_CLIPS)

    q, step = _in_groups(weight, block, steps, _int4, factor)
    return Int4Weight(pack_halves(q), step.to(dtype), block)


def to_fp8(weight: torch.Tensor) -> Fp8Weight:
    """e4m3 with a scale per row of ``weight [N, K]``."""
    top = weight.abs().amax(1, keepdim=True).clamp_min(_TINY)
    step = best_steps(weight, (top * place / E4M3_MAX for place in _E4M3_PLACES), lambda x: to_e4m3(x).float())
    return Fp8Weight(to_e4m3(weight / step).contiguous(), step[:, 0])


def to_nvfp4(weight: torch.Tensor, factor: torch.Tensor | None = None) -> Nvfp4Weight:
    """NVFP4: e2m1 in blocks of 16 of ``weight [N, K]``; ``factor``: of ``compensation``."""

    def steps(groups: torch.Tensor) -> Iterable[torch.Tensor]:
        top = groups.abs().amax(-1, keepdim=True)
        return (to_e4m3(top * place / E2M1_MAX).float() for place in _E2M1_PLACES)

    scale = (weight.abs().amax() / (E2M1_MAX * E4M3_MAX)).clamp_min(_TINY)
    q, step = _in_groups(weight / scale, NVFP4_BLOCK, steps, to_e2m1, factor)
    return Nvfp4Weight(q, to_e4m3(step), scale)


def _int8(x: torch.Tensor) -> torch.Tensor:
    return x.round().clamp(-127, 127)


def _int4(x: torch.Tensor) -> torch.Tensor:
    return x.round().clamp(-8, 7)
