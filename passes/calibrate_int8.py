"""The arithmetic of int8 linears: activations by calibration, judged on real rows.

Everything here works on plain tensors; ``quantize`` decides which nodes it is used for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from passes.linears import TINY, Observed, relative_error, weight_error
from passes.narrow_weights import Int8Weight, to_int8

_ALPHAS = (0.0, 0.5, 0.7, 0.85)
_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # of a symmetric range; an asymmetric one is taken whole
_MIDDLE = 128


@dataclass(frozen=True)
class Int8Linear:
    """A linear with calibrated activations, as ``penstock.int8_linear_static`` takes it.

    Attributes:
        weight: with the smoothing in it, and ``scale`` of weight and activation together.
        x_scale: f32 ``[]`` or ``[K]``.
        x_zero: what zero becomes, 0 to 255.
        shift: f32 ``[N]``: mean of what the product loses, to be added to the bias.
        error: relative error of the output on calibration rows, after the shift.
    """

    weight: Int8Weight
    x_scale: torch.Tensor
    x_zero: int
    shift: torch.Tensor
    error: float


def calibrate(seen: Observed, weights: Sequence[torch.Tensor], symmetric: bool = False) -> list[Int8Linear]:
    """Int8 forms of the linears ``weights [N, K]`` that read one activation.

    They share its quantization. Smoothing moves range from activation channels to weight columns where that
    lowers the error of the outputs (SmoothQuant, 2211.10438, with its exponent chosen here by measuring).
    ``symmetric``: zero becomes 128, and the range is clipped where that lowers the error.
    """
    rows = torch.cat(seen.rows)
    wants = [linear(rows, w) for w in weights]
    tries = {a: _with_alpha(seen, rows, weights, wants, a, symmetric, quick=True) for a in _ALPHAS}
    best = min(tries, key=lambda a: _total(tries[a]))
    return _with_alpha(seen, rows, weights, wants, best, symmetric)


def _total(made: Sequence[Int8Linear]) -> float:
    return sum(m.error for m in made)


def _with_alpha(
    seen: Observed, rows: torch.Tensor, weights: Sequence[torch.Tensor], wants: Sequence[torch.Tensor], alpha: float,
    symmetric: bool, quick: bool = False,
) -> list[Int8Linear]:  # fmt: skip
    """``quick`` does not search clips."""
    smooth = _smoothing(seen, weights, alpha)
    quantized = [to_int8(w * smooth, (1.0,)) if quick else to_int8(w * smooth) for w in weights]
    tries = []
    for step, zero in _grids(seen, smooth, symmetric, _CLIPS[:1] if quick else _CLIPS):
        x_scale = (smooth * step).float()
        left = ((rows / x_scale).round() + zero).clamp(0, 255) - zero
        shared = x_scale if alpha else x_scale[0].clone()
        made = []
        for weight, want in zip(quantized, wants, strict=True):
            scale = weight.scale * step
            got = linear(left, weight.q.float()) * scale
            shift = (want - got).mean(0)
            made.append(Int8Linear(Int8Weight(weight.q, scale), shared, zero, shift, relative_error(got + shift, want)))
        tries.append(made)
    return min(tries, key=_total)


def _grids(seen: Observed, smooth: torch.Tensor, symmetric: bool, clips: Sequence[float]) -> list[tuple[float, int]]:
    """Steps and zeros of the activation to choose from."""
    assert seen.low is not None and seen.high is not None
    low = float((seen.low / smooth).amin().clamp_max(0.0))
    high = float((seen.high / smooth).amax().clamp_min(0.0))
    if symmetric:
        return [(max(max(-low, high) * clip / 127.0, TINY), _MIDDLE) for clip in clips]
    step = max((high - low) / 255.0, TINY)
    return [(step, int(min(255, max(0, round(-low / step)))))]


def _smoothing(seen: Observed, weights: Sequence[torch.Tensor], alpha: float) -> torch.Tensor:
    """Divisor per channel of the activation, relative to the middle channel and at least 1.

    Only channels that stand out are made smaller. Without the floor, channels that were silent in calibration
    would be blown up (MiniLM's second feed-forward: cosine 0.990 instead of 0.999).
    """
    reach = seen.reach
    if alpha == 0.0:
        return torch.ones_like(reach)
    columns = torch.stack([w.abs().amax(0) for w in weights]).amax(0).clamp_min(1e-5)
    strength = reach.clamp_min(1e-5).pow(alpha) / columns.pow(1 - alpha)
    return (strength / strength.median()).clamp_min(1.0)


def dynamic_error(rows: torch.Tensor | None, weight: torch.Tensor, made: Int8Weight) -> float:
    """Relative error of the output with activations quantized as they come; of the weight without rows."""
    if rows is None:
        return weight_error(None, weight, made.float())
    low, high = rows.amin().clamp_max(0.0), rows.amax().clamp_min(0.0)
    step = ((high - low) / 255.0).clamp_min(TINY)
    zero = (-low / step).round()
    left = (((rows / step).round() + zero).clamp(0, 255) - zero) * step
    return relative_error(linear(left, made.float()), linear(rows, weight))
