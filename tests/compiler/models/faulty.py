"""Models, and things that are none, each wrong in one way."""

import torch
from torch import nn

import penstock

INPUTS = {"input": torch.linspace(-1, 1, 64).reshape(4, 16)}


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mean() > 0:
            x = x + 1
        for _ in range(int(x.sum())):
            x = x * 2
        return x


def model() -> penstock.ModelSpec:
    return penstock.ModelSpec(Branches(), {"x": INPUTS["input"] + 0.1})


def raises() -> penstock.ModelSpec:
    raise KeyError("no such checkpoint")


def ends() -> penstock.ModelSpec:
    raise SystemExit(0)


def gives_text() -> str:
    return "a model"


def needs(path: str) -> penstock.ModelSpec:
    raise NotImplementedError(path)


def fails_itself() -> penstock.ModelSpec:
    return penstock.ModelSpec(nn.Linear(15, 4), INPUTS)


def other_argument() -> penstock.ModelSpec:
    return penstock.ModelSpec(nn.Linear(16, 4), {"inptu": INPUTS["input"]})


def sample_out_of_range() -> penstock.ModelSpec:
    return penstock.ModelSpec(nn.Linear(16, 4), INPUTS, {"input": {0: penstock.Dim("batch", 8, 64)}})


def no_such_axis() -> penstock.ModelSpec:
    return penstock.ModelSpec(nn.Linear(16, 4), INPUTS, {"input": {2: penstock.Dim("batch", 1, 64)}})


def meta_weights() -> penstock.ModelSpec:
    with torch.device("meta"):
        return penstock.ModelSpec(nn.Linear(16, 4), INPUTS)


def bad_calibration() -> penstock.ModelSpec:
    return penstock.ModelSpec(nn.Linear(16, 4), INPUTS, calibration=[INPUTS, {"input": torch.zeros(4, 15)}])


def metric_raises() -> penstock.ModelSpec:
    def no_labels(run: object) -> float:
        raise ValueError("no labels")

    return penstock.ModelSpec(nn.Linear(16, 4), INPUTS, metric=no_labels)


def metric_is_number() -> penstock.ModelSpec:
    return penstock.ModelSpec(nn.Linear(16, 4), INPUTS, metric=0.5)  # type: ignore[arg-type]
