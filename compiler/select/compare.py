"""How far two sets of outputs lie apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Distance:
    """Largest absolute difference, and the smallest cosine over the rows of any output."""

    max_abs: float = 0.0
    cosine: float = 1.0

    @property
    def loss(self) -> float:
        """One minus the worst cosine."""
        return 1.0 - self.cosine


def distance(want: Mapping[str, torch.Tensor], got: Mapping[str, torch.Tensor]) -> Distance:
    """Distance of outputs by name; infinite where shapes or the places of NaN differ."""
    max_abs, cosine = 0.0, 1.0
    for name, w in want.items():
        g = got[name]
        if w.shape != g.shape:
            return Distance(float("inf"), -1.0)
        if w.numel() == 0 or torch.equal(w, g):
            continue
        a, b = w.double(), g.double()
        if not torch.equal(torch.isnan(a), torch.isnan(b)):
            return Distance(float("inf"), -1.0)
        a, b = torch.nan_to_num(a), torch.nan_to_num(b)
        max_abs = max(max_abs, float((a - b).abs().max()))
        cosine = min(cosine, _worst_row(a, b))
    return Distance(max_abs, cosine)


def _worst_row(a: torch.Tensor, b: torch.Tensor) -> float:
    width = a.shape[-1] if a.dim() > 1 else a.numel()
    a, b = a.reshape(-1, width), b.reshape(-1, width)
    norms = a.norm(dim=1) * b.norm(dim=1)
    both_zero = (a.norm(dim=1) == 0) & (b.norm(dim=1) == 0)
    cosines = torch.where(both_zero, torch.ones_like(norms), (a * b).sum(1) / norms.clamp_min(1e-300))
    return float(cosines.min())
