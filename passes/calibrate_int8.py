"""The arithmetic of int8 linears: weights per channel, activations by calibration, both judged on real rows.

Everything here works on plain tensors; ``quantize`` decides which nodes it is used for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.functional import linear

_CLIPS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85)
_ALPHAS = (0.0, 0.5, 0.7, 0.85)
_ROWS = 384  # enough rows to rank four smoothings; more moved MiniLM's loss by less than 1e-4
_TINY = 1e-12


@dataclass(frozen=True)
class Int8Weight:
    """``q [N, K]`` int8 and ``scale [N]``: the weight is about ``q * scale``."""

    q: torch.Tensor
    scale: torch.Tensor


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


@dataclass
class Observed:
    """What calibration saw of one activation: range per channel, and some of its rows."""

    low: torch.Tensor | None = None
    high: torch.Tensor | None = None
    rows: list[torch.Tensor] = field(default_factory=list)

    def see(self, x: torch.Tensor, share: int) -> None:
        """Take in an activation ``[..., K]``; keep up to ``share`` of its rows, evenly spaced."""
        flat = x.detach().float().reshape(-1, x.shape[-1])
        if flat.shape[0] == 0:
            return
        low, high = flat.amin(0), flat.amax(0)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        step = max(1, flat.shape[0] // share)
        self.rows.append(flat[::step][:share].clone())

    @staticmethod
    def share(samples: int) -> int:
        """Rows to keep of each of so many samples."""
        return max(8, _ROWS // max(samples, 1))


def quantize_weight(weight: torch.Tensor, clips: Sequence[float] = _CLIPS) -> Int8Weight:
    """Symmetric int8 per row of ``weight [N, K]``.

    Each row is clipped at that fraction of its largest magnitude where the squared error is least.
    """
    top = weight.abs().amax(1).clamp_min(_TINY)
    best = torch.full_like(top, float("inf"))
    scale = top / 127.0
    for clip in clips:
        step = (top * clip / 127.0)[:, None]
        error = ((weight / step).round().clamp(-127, 127) * step - weight).square().sum(1)
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, step[:, 0], scale)
    q = (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    return Int8Weight(q.contiguous(), scale)


def calibrate(seen: Observed, weights: Sequence[torch.Tensor]) -> list[Int8Linear]:
    """Int8 forms of the linears ``weights [N, K]`` that read one activation.

    They share its quantization. Smoothing moves range from activation channels to weight columns where that
    lowers the error of the outputs (SmoothQuant, 2211.10438, with its exponent chosen here by measuring).
    """
    rows = torch.cat(seen.rows)
    wants = [linear(rows, w) for w in weights]
    tries = {a: _with_alpha(seen, rows, weights, wants, a, clips=(1.0,)) for a in _ALPHAS}
    best = min(tries, key=lambda a: sum(made.error for made in tries[a]))
    return _with_alpha(seen, rows, weights, wants, best, _CLIPS)


def _with_alpha(
    seen: Observed, rows: torch.Tensor, weights: Sequence[torch.Tensor], wants: Sequence[torch.Tensor], alpha: float,
    clips: Sequence[float],
) -> list[Int8Linear]:  # fmt: skip
    assert seen.low is not None and seen.high is not None
    smooth = _smoothing(seen, weights, alpha)
    low = float((seen.low / smooth).amin().clamp_max(0.0))
    high = float((seen.high / smooth).amax().clamp_min(0.0))
    step = max((high - low) / 255.0, _TINY)
    zero = int(min(255, max(0, round(-low / step))))
    x_scale = (smooth * step).float()
    left = ((rows / x_scale).round() + zero).clamp(0, 255) - zero
    made = []
    for weight, want in zip(weights, wants, strict=True):
        quantized = quantize_weight(weight * smooth, clips)
        scale = quantized.scale * step
        got = linear(left, quantized.q.float()) * scale
        shift = (want - got).mean(0)
        wrong = float((got + shift - want).norm() / want.norm().clamp_min(_TINY))
        shared = x_scale if alpha else x_scale[0].clone()
        made.append(Int8Linear(Int8Weight(quantized.q, scale), shared, zero, shift, wrong))
    return made


def _smoothing(seen: Observed, weights: Sequence[torch.Tensor], alpha: float) -> torch.Tensor:
    """Divisor per channel of the activation, relative to the middle channel and at least 1.

    Only channels that stand out are made smaller. Without the floor, channels that were silent in calibration
    would be blown up (MiniLM's second feed-forward: cosine 0.990 instead of 0.999).
    """
    assert seen.low is not None and seen.high is not None
    reach = torch.maximum(seen.low.abs(), seen.high.abs())
    if alpha == 0.0:
        return torch.ones_like(reach)
    columns = torch.stack([w.abs().amax(0) for w in weights]).amax(0).clamp_min(1e-5)
    strength = reach.clamp_min(1e-5).pow(alpha) / columns.pow(1 - alpha)
    return (strength / strength.median()).clamp_min(1.0)


def dynamic_error(rows: torch.Tensor | None, weight: torch.Tensor, made: Int8Weight) -> float:
    """Relative error of the output with activations quantized as they come; of the weight without rows."""
    approximate = made.q * made.scale[:, None]
    if rows is None:
        return float((approximate - weight).norm() / weight.norm().clamp_min(_TINY))
    low, high = rows.amin().clamp_max(0.0), rows.amax().clamp_min(0.0)
    step = ((high - low) / 255.0).clamp_min(_TINY)
    zero = (-low / step).round()
    left = (((rows / step).round() + zero).clamp(0, 255) - zero) * step
    want = linear(rows, weight)
    return float((linear(left, approximate) - want).norm() / want.norm().clamp_min(_TINY))
