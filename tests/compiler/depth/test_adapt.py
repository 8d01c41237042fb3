"""Ridge maps, heads folded into maps, the gate, and refusals."""

from __future__ import annotations

import torch

from compiler.depth.adapt import PENALTIES, adapt, affine_tail, ridge


def _data(rows: int = 400, width: int = 12, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=random)
    turn = torch.linalg.qr(torch.randn(width, width, generator=random))[0]
    return x, x @ turn.T + 1.0 + noise * torch.randn(rows, width, generator=random)


def test_ridge_finds_an_affine_map_and_shrinks_with_the_penalty() -> None:
    x, y = _data(noise=0.0)
    none, much = ridge(x, y, [0.0, 1e6])
    assert torch.allclose(x.double() @ none[0].T + none[1], y.double(), atol=1e-5)
    assert much[0].abs().max() < 1e-3 and torch.allclose(much[1], y.double().mean(0), atol=1e-3)


def test_ridge_is_the_solution_of_the_normal_equations() -> None:
    x, y = _data()
    (weight, _), penalty = ridge(x, y, [0.5])[0], 0.5
    a, b = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    gram = a.T @ a
    want = torch.linalg.solve(gram + penalty * torch.linalg.eigvalsh(gram).mean() * torch.eye(12).double(), a.T @ b).T
    assert torch.allclose(weight, want, atol=1e-10)


def test_an_affine_tail_is_found_and_another_is_not() -> None:
    x, _ = _data()
    weight, bias = torch.randn(5, 12, generator=torch.Generator().manual_seed(1)), torch.ones(5)
    found = affine_tail(x, x @ weight.T + bias)
    assert found is not None and torch.allclose(found[0].float(), weight, atol=1e-4)
    assert affine_tail(x, (x @ weight.T).tanh()) is None
    assert affine_tail(x[:5], x[:5] @ weight.T) is None


def test_maps_beat_no_map_and_random_ones_or_are_not_kept() -> None:
    x, y = _data()
    useless = torch.randn(400, 12, generator=torch.Generator().manual_seed(3))
    given = {1: useless, 2: x}

    def judge(exit_: int, map_: tuple[torch.Tensor, torch.Tensor] | None) -> float:
        found = given[exit_].double() if map_ is None else given[exit_].double() @ map_[0].double().T + map_[1]
        return float((found - y.double()).square().mean()) + (0.0 if map_ is None or exit_ == 2 else 9.0)

    found = adapt(given, y, None, judge)
    assert list(found.maps) == [2]
    assert "no map" in found.why[1] and "random" in found.why[1]
    told = found.disclosure
    assert told["rows"] == 400 and told["parameters"] == 12 * 12 + 12 and told["bytes"] == 4 * told["parameters"]
    assert told["exits"][1]["penalty"] in PENALTIES and "no labels" in told["targets"]


def test_a_head_folded_into_a_map_answers_through_the_tail_as_the_head_would() -> None:
    """Where features are not linear in the target, a head fitted to the classes does better than least squares."""
    random = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 3, (600,), generator=random)
    x = torch.nn.functional.one_hot(classes, 3).float() @ torch.randn(3, 8, generator=random)
    x = x + 0.3 * torch.randn(600, 8, generator=random)
    weight = torch.randn(3, 8, generator=random)
    target = 6 * torch.linalg.pinv(weight)[:, classes].T + 3 * torch.randn(600, 8, generator=random)
    answers = target @ weight.T

    def judge(exit_: int, map_: tuple[torch.Tensor, torch.Tensor] | None) -> float:
        features = x.double() if map_ is None else x.double() @ map_[0].double().T + map_[1].double()
        logs = (features @ weight.double().T).log_softmax(-1)
        return float(-(answers.double().softmax(-1) * logs).sum(-1).mean())

    found = adapt({1: x}, target, answers, judge).disclosure["exits"][0]
    assert found["method"] == "head" and found["kept"] and found["loss"] < found["bare"]
