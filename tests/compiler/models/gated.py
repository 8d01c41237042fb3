"""A model whose second half runs only when the first is not sure."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import penstock

WIDTH = 128


class Gated(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.rest = nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())))

    def forward(self, x: Tensor) -> Tensor:
        """Rows of 128 numbers."""
        y = torch.tanh(self.first(x))
        return torch.cond(x.sum() > 0, lambda y: y.clone(), self.rest, (y,))


def model(depth: int = 40) -> penstock.ModelSpec:
    """Inputs that take either side."""
    torch.manual_seed(0)
    x = torch.rand(32, WIDTH)
    dims = {"x": {0: penstock.Dim("n", 1, 256)}}
    return penstock.ModelSpec(Gated(depth).eval(), {"x": x}, dims, calibration=[{"x": x}, {"x": -x[:5]}], name="gated")
