"""Two linear layers, any batch: the model of most tests, in every form that a file may give it."""

import torch
from torch import nn

import penstock

BATCH = penstock.Dim("batch", 1, 64)


def _net(width: int = 32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, width), nn.GELU(), nn.Linear(width, 4))


def _inputs(batch: int = 4) -> dict[str, torch.Tensor]:
    return {"input": torch.linspace(-1, 1, batch * 16).reshape(batch, 16)}


def model() -> penstock.ModelSpec:
    return penstock.ModelSpec(_net(), _inputs(), {"input": {0: BATCH}}, name="mlp")


def as_pair() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return _net(), _inputs()


def large() -> penstock.ModelSpec:
    """About a megabyte of weights."""
    return penstock.ModelSpec(_net(8192), _inputs(), {"input": {0: BATCH}}, name="large")


def prints() -> penstock.ModelSpec:
    print("hello from the model")  # noqa: T201
    return model()


def with_nan() -> penstock.ModelSpec:
    net = _net()
    net[0].weight.data[3, 5] = float("nan")
    return penstock.ModelSpec(net, _inputs(), name="with_nan")


def bessel() -> penstock.ModelSpec:
    """Two operators that the IR takes and no engine but the interpreter carries."""

    class Bessel(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j1(torch.special.bessel_j0(x))

    return penstock.ModelSpec(Bessel(), {"x": _inputs()["input"]})
