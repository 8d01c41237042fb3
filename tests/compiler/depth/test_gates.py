"""Gates find what the features know, and say so when there is nothing to find."""

from __future__ import annotations

import torch

from compiler.depth.gates import auc, fit_gates, logistic


def _planted(rows: int, seed: int, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 24, generator=generator)
    clear = strength * (x[:, 0] - 0.5 * x[:, 1]) + torch.randn(rows, generator=generator)
    return x, clear > 0.3


def test_a_planted_direction_is_found() -> None:
    (x, y), (seen, judged) = _planted(600, 0, 3.0), _planted(400, 1, 3.0)
    made = fit_gates({2: x}, {2: y}, {2: seen}, {2: judged}, 30)
    weight, bias = made.gates[2]
    assert not made.why and weight.shape == (24,) and bias.shape == ()
    assert auc(seen @ weight + bias, judged) > 0.9
    assert weight.abs().argsort(descending=True)[:2].tolist() == [0, 1]
    (told,) = made.disclosure["exits"]
    assert told["auc"] > 0.9 and abs(told["random"] - 0.5) < 0.25


def test_one_kind_of_row_teaches_nothing() -> None:
    x, _ = _planted(100, 0, 1.0)
    y = torch.ones(100, dtype=torch.bool)
    made = fit_gates({1: x}, {1: y}, {1: x}, {1: y}, 30)
    assert not made.gates and "teaches a gate nothing" in made.why


def test_time_that_is_over_leaves_no_gates() -> None:
    x, y = _planted(100, 0, 1.0)
    assert "within -1 s" in fit_gates({1: x}, {1: y}, {1: x}, {1: y}, -1).why


def test_logistic_is_the_convex_minimum() -> None:
    x, y = _planted(200, 3, 1.0)
    weight, bias = (t.clone().requires_grad_() for t in logistic(x.double(), y.double(), 1e-2))
    spread = x.double().std(0)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(x.double() @ weight + bias, y.double())
    (loss + 1e-2 * (weight * spread).square().sum()).backward()
    assert weight.grad.abs().max() < 1e-4 and bias.grad.abs() < 1e-4


def test_area_under_the_curve() -> None:
    good = torch.tensor([True, True, False, False])
    assert auc(torch.tensor([4.0, 3.0, 2.0, 1.0]), good) == 1
    assert auc(torch.tensor([1.0, 2.0, 3.0, 4.0]), good) == 0
    assert auc(torch.tensor([1.0, 1.0, 1.0, 1.0]), good) == 0.5
    assert auc(torch.tensor([1.0]), torch.tensor([True])) == 0.5
