"""Whether exits pay: the U-shape, both batch modes, and the answer "no"."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from compiler.cost.targets import target
from compiler.depth.planner import Prices, expected, plan
from compiler.depth.traces import Traces
from tests.compiler.depth.made import easy_and_hard


def _even(block: float = 1.0, check: float = 0.0, fixed: float = 0.0) -> Prices:
    """A row costs the same in every batch."""
    return Prices(lambda n: fixed, lambda n: block * n, lambda n: check * n, lambda n: 0.0)


def _leaving(share: float, samples: int = 4000) -> Traces:
    """Checks after blocks 8, 16 and 24 of 32, at each of which this share of the live rows leaves."""
    rng = np.random.default_rng(0)
    scores = (rng.random((samples, 3)) < share).astype(np.float64)
    return Traces(scores, 1 - scores, (8, 16, 24), 32)


def _decode(weights: float, kv_row: float, head: float) -> Prices:
    """A decoder on an H100: a product takes its weight bytes or its operations, whichever is longer."""
    gpu = target("h100_sxm")

    def product(parameters: float, extra: float = 0.0) -> Callable[[int], float]:
        operations = 2 * parameters / (0.6 * gpu.peak["bf16"])
        return lambda n: max((2 * parameters + n * extra) / (0.8 * gpu.bandwidth), n * operations) + 4e-6

    return Prices(product(head), product(weights, kv_row), product(head), lambda n: 8e-6)


LLAMA_7B = _decode(202e6, 16.8e6, 131e6)
LLAMA_8B = _decode(218e6, 4.2e6, 525e6)
AT = np.array([0.5, 0.5, 0.5])


def test_at_batch_1_the_time_is_that_of_the_mean_depth() -> None:
    traces = easy_and_hard(500)
    at = np.full(5, 0.5)
    found = expected(traces, at, _even(), 1, draws=20000)
    assert found.full == 6
    assert found.synchronous == found.compacted == pytest.approx(traces.depths(at).mean(), rel=0.01)


def test_a_synchronous_batch_is_as_deep_as_its_deepest_row() -> None:
    traces = easy_and_hard(500)
    at = np.full(5, 0.5)
    big = expected(traces, at, _even(), 64)
    assert big.gain(compacts=False) == pytest.approx(1.0, abs=0.02)
    assert big.gain(compacts=True) == pytest.approx(6 / traces.depths(at).mean(), rel=0.03)
    assert big.all_left[-1] < 0.01


def test_rows_that_come_together_are_drawn_together() -> None:
    """P(all left) is that of the samples, not of exits that would be independent."""
    scores = np.array([[1.0, 1.0]] * 50 + [[0.0, 0.0]] * 50)
    found = expected(Traces(scores, np.zeros((100, 2)), (1, 2), 3), np.array([0.5, 0.5]), _even(), 2, draws=4000)
    assert found.all_left == pytest.approx((0.25, 0.25), abs=0.03)


def test_without_exits_the_price_is_that_of_all_blocks_and_every_check() -> None:
    traces = easy_and_hard(100)
    found = expected(traces, np.full(5, np.inf), _even(check=0.1, fixed=2.0), 4)
    assert found.full == 2 + 24
    assert found.synchronous == found.compacted == pytest.approx(2 + 24 + 5 * 0.4)


def test_gains_are_a_u_over_the_batch() -> None:
    """ux_reliability.md 2.4: a dear head loses at middle batches; compaction earns again at large ones."""
    for prices, bottom in ((LLAMA_7B, 1.1), (LLAMA_8B, 1.0)):
        traces = _leaving(0.3)
        found = {n: expected(traces, AT, prices, n) for n in (1, 4, 16, 64, 256)}
        gains = {n: p.gain(compacts=True) for n, p in found.items()}
        middle = min(gains[4], gains[16])
        assert middle < bottom and gains[1] > middle + 0.2 and gains[256] > middle + 0.2, gains
        assert all(p.gain(compacts=False) < 1.06 for n, p in found.items() if n > 1), found


def test_the_planner_says_no_with_the_numbers_where_exits_do_not_pay() -> None:
    traces = _leaving(0.1)
    told = plan(traces, LLAMA_8B, 0.01, batches=(16, 1))
    assert not told.exits
    assert "do not insert exits here" in told.why and "at batch 16" in told.why and "a check costs" in told.why


def test_the_planner_says_yes_where_they_do_and_leaves_out_exits_that_are_not_worth_their_check() -> None:
    traces = easy_and_hard(1500)
    free = plan(traces, _even(), 0.01)
    assert free.exits == (0, 1, 2, 3, 4) and free.batches[0].gain(True) > 1.3
    dear = plan(traces, _even(check=0.4), 0.01)
    assert 0 < len(dear.exits) < 5
    ruinous = plan(traces, _even(check=3.0), 0.01)
    assert not ruinous.exits and "do not insert" in ruinous.why


def test_a_budget_that_no_threshold_meets_is_one_message_with_the_numbers() -> None:
    rng = np.random.default_rng(0)
    useless = Traces(rng.random((300, 2)), 1 + rng.random((300, 2)), (1, 2), 3)
    told = plan(useless, _even(), 1e-6)
    assert not told.exits and told.descent is None
    assert "no threshold keeps the loss within 1e-06" in told.why and "would lose 1.4" in told.why


def test_with_many_exits_the_least_useful_are_dropped_one_by_one() -> None:
    told = plan(easy_and_hard(300, blocks=10), _even(check=0.3), 0.02, batches=(1,))
    assert 0 < len(told.exits) < 9
