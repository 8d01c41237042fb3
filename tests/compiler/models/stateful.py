"""A model that remembers: the mean of all rows that it has seen."""

import torch
from torch import Tensor, nn

import penstock


class Running(nn.Module):
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)
        self.register_buffer("total", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.total += x.mean(0)
        return self.mix(x) + self.total


def model() -> penstock.ModelSpec:
    torch.manual_seed(0)
    return penstock.ModelSpec(
        Running(), {"x": torch.ones(4, 8)}, {"x": {0: penstock.Dim("batch", 1, 64)}}, name="running"
    )
