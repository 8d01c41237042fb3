"""Thresholds on traces whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compiler.depth.thresholds import (
    EffortGrid,
    by_fractions,
    curve,
    descend,
    effort_grid,
    histogram,
    isotonic,
    oracle_depth,
    quality,
    upper_bound,
)
from compiler.depth.traces import Traces, check_thresholds, data_digest, parts
from ir.errors import UsageError
from tests.compiler.depth.made import easy_and_hard, graded

MADE = pytest.mark.parametrize("make", [easy_and_hard, graded])


def _two(scores: list[list[float]], losses: list[list[float]]) -> Traces:
    return Traces(np.array(scores), np.array(losses), (1, 2), 3)


def test_a_row_leaves_at_the_first_exit_that_is_sure_enough() -> None:
    traces = _two([[0.9, 0.1], [0.1, 0.9], [0.1, 0.1]], [[1, 2], [3, 4], [5, 6]])
    at = np.array([0.5, 0.5])
    assert traces.taken(at).tolist() == [0, 1, 2]
    assert traces.depths(at).tolist() == [1, 2, 3]
    assert traces.lost(at).tolist() == [1, 4, 0]
    assert histogram(traces, at) == (1, 1, 1)


@MADE
def test_the_descent_runs_from_all_blocks_to_the_first_exit_and_each_row_only_leaves_earlier(make) -> None:
    traces = make(500)
    found = descend(traces)
    depths = np.stack([traces.depths(t) for t in found.thresholds])
    assert (depths[0] == 6).all() and (depths[-1] == 1).all()
    assert (np.diff(depths, axis=0) <= 0).all()
    assert found.losses[0] == found.bounds[0] == 0
    assert (found.bounds[1:] >= found.losses[1:]).all()


@MADE
@pytest.mark.parametrize("budget", [0.002, 0.01, 0.05])
def test_the_budget_holds_on_data_that_set_no_threshold(make, budget: float) -> None:
    held = 0
    for seed in range(20):
        traces = make(800, seed)
        found = descend(traces)
        at = found.thresholds[found.within(budget)]
        held += quality(make(20000, seed + 1000), at).loss <= budget
    assert held >= 17  # of 20; each bound is one-sided 95 %


def test_thresholds_are_close_to_the_best_and_far_better_than_one_depth_for_all() -> None:
    traces = easy_and_hard(4000)
    found = descend(traces)
    depth = found.depths[found.within(0.01)]
    perfect = 3.5  # ready is uniform on 1..6
    assert perfect - 0.1 <= depth <= perfect + 1.1
    assert descend(_blind(traces)).depths[descend(_blind(traces)).within(0.01)] > 5.8  # scores that know nothing


def _blind(traces: Traces) -> Traces:
    rng = np.random.default_rng(5)
    return Traces(rng.random(traces.scores.shape), traces.losses, traces.layers, traces.blocks)


def test_the_oracle_leaves_at_the_first_exit_that_will_do() -> None:
    traces = _two([[0.0, 0.0]] * 3, [[0.0, 1.0], [0.5, 0.01], [0.5, 0.5]])
    assert oracle_depth(traces, 0.01) == (1 + 2 + 3) / 3
    made = easy_and_hard(4000)
    found = descend(made)
    assert oracle_depth(made, 0.0) == pytest.approx(3.5, abs=0.1) and oracle_depth(made, 0.0) < found.depths[1]


def test_costs_decide_which_exits_are_used() -> None:
    traces = easy_and_hard(1000)
    dear_first = descend(traces, [5.0, 5.1, 5.2, 5.3, 5.4, 5.5])
    assert (np.diff(dear_first.costs) <= 1e-12).all()
    with pytest.raises(UsageError, match="6 costs"):
        descend(traces, [1.0, 2.0])


def test_equal_scores_stay_together() -> None:
    traces = _two([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 5, [[0.0, 0.0]] * 10)
    for point in descend(traces).thresholds:
        assert len(set(traces.taken(point)[:5])) == 1


def test_no_loss_seen_is_no_proof_of_none() -> None:
    assert upper_bound(np.zeros(60), worst=1.0) > 0.01
    assert upper_bound(np.zeros(500), worst=1.0) < 0.01
    few = np.array([1.0] + [0.0] * 50)
    assert upper_bound(few, worst=1.0) > few.mean() + 0.02


def test_isotonic_is_a_falling_step_function_with_the_same_mean() -> None:
    rng = np.random.default_rng(0)
    scores, losses = rng.random(300).round(2), rng.random(300)
    found = isotonic(scores, losses)
    assert found.mean() == pytest.approx(losses.mean())
    assert (np.diff(found[np.argsort(scores)]) <= 1e-12).all()
    assert isotonic(np.array([3.0, 2, 1]), np.array([1.0, 2, 3])).tolist() == [1, 2, 3]


def test_fractions_are_hit_within_one_row_and_on_other_data_within_three_sigma() -> None:
    here, there = graded(1000, 1), graded(1000, 2)
    shares = [0.3, 0.2, 0.1, 0.1, 0.1]
    at = by_fractions(here.scores, shares)
    assert np.abs(np.array(histogram(here, at))[:5] - np.array(shares) * 1000).max() <= 1
    sigma = np.sqrt(2 * np.array(shares) * (1 - np.array(shares)) * 1000)
    assert (np.abs(np.array(histogram(there, at))[:5] - np.array(shares) * 1000) <= 3 * sigma).all()
    assert np.isinf(by_fractions(here.scores, [0.0] * 5)).all()
    for wrong in ([0.5] * 5, [0.1] * 4, [-0.1, 0, 0, 0, 0], [float("nan"), 0, 0, 0, 0]):
        with pytest.raises(UsageError):
            by_fractions(here.scores, wrong)


@MADE
def test_effort_is_monotone_in_depth_and_exact_at_its_ends(make) -> None:
    traces = make(500)
    grid = effort_grid(descend(traces))
    depths = [traces.depths(grid.at(e)).mean() for e in np.linspace(0, 1, 101)]
    assert depths[0] == 1 and depths[-1] == 6
    assert np.all(np.diff(depths) >= 0)
    assert abs(traces.depths(grid.at(0.5)).mean() - 3.5) < 0.3
    assert np.isinf(grid.at(1)).all()
    told = curve(traces, grid)
    assert told[-1] == {"effort": 1.0, "depth": 6.0, "loss": 0.0}


@pytest.mark.parametrize("effort", [-0.01, 1.01, float("nan"), float("inf"), True, "0.5", None])
def test_an_effort_out_of_range_is_one_message(effort: object) -> None:
    grid = effort_grid(descend(graded(50)))
    with pytest.raises(UsageError, match="not a number from 0 to 1"):
        grid.at(effort)  # type: ignore[arg-type]


def test_a_grid_that_was_tampered_with_is_refused() -> None:
    good = effort_grid(descend(graded(50)))
    for efforts, thresholds in (
        ((0.0, 0.5), good.thresholds[:2]),
        ((0.0, 1.0), good.thresholds[[0, 5]]),
        ((0.0, 1.0), good.thresholds[[5, -1]]),
        ((0.0, 0.5, 1.0), good.thresholds[[0, -1, -1]] * np.nan),
        (good.efforts, good.thresholds[::-1]),
        (good.efforts, good.thresholds[:-1]),
    ):
        with pytest.raises(UsageError):
            EffortGrid(efforts, thresholds)


def test_quality_tells_the_95th_percentile_and_is_exact_at_full_depth() -> None:
    traces = graded(1000)
    full = quality(traces, np.full(5, np.inf))
    assert (full.loss, full.bound, full.depth, full.p95) == (0, 0, 6, 6)
    first = quality(traces, np.full(5, -np.inf))
    assert (first.depth, first.p95) == (1, 1) and first.bound > first.loss > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_and_losses_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(UsageError, match="score of sample 0 after block 2"):
        _two([[0.0, value]], [[0.0, 0.0]])
    with pytest.raises(UsageError, match="loss of sample 0 after block 1"):
        _two([[0.0, 0.0]], [[value, 0.0]])


def test_traces_without_samples_or_exits_or_order_are_refused() -> None:
    with pytest.raises(UsageError, match="there are none"):
        Traces(np.zeros((0, 1)), np.zeros((0, 1)), (1,), 2)
    with pytest.raises(UsageError, match="no exits"):
        Traces(np.zeros((3, 0)), np.zeros((3, 0)), (), 2)
    with pytest.raises(UsageError, match="ascending"):
        Traces(np.zeros((1, 2)), np.zeros((1, 2)), (2, 2), 3)
    with pytest.raises(UsageError, match="NaN"):
        check_thresholds(np.array([np.nan]), 1)
    with pytest.raises(UsageError, match="2 exits"):
        check_thresholds(np.array([1.0]), 2)


def test_parts_follow_the_content_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 1000, (200, 7), generator=rng)
    found = parts([{"ids": ids}], ["ids"])
    assert set(found.tolist()) == {0, 1, 2} and 60 < (found == 0).sum() < 140
    padded = torch.cat([ids, torch.zeros(200, 3, dtype=torch.int64)], 1)
    assert (parts([{"ids": padded[:50]}, {"ids": padded[50:]}], ["ids"]) == found).all()
    assert data_digest([{"ids": ids}]) != data_digest([{"ids": padded}])
