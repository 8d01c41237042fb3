"""Rows in buckets: sizes, padding, and the same results as ``rows`` itself."""

from __future__ import annotations

import doctest

import pytest
import torch

import backends.buckets
from backends.buckets import bucket, buckets, padded, run_bucketed
from ir import interpret
from ir.interpret import run_block
from tests.row_regions import LIVE, rows_of, some_inputs, the_rows


def test_examples_hold() -> None:
    assert doctest.testmod(backends.buckets).failed == 0


@pytest.mark.parametrize("most", [1, 2, 3, 8, 13, 64])
def test_a_bucket_holds_the_rows_and_at_most_as_much_padding(most: int) -> None:
    for live in range(1, most + 1):
        size = bucket(live, most)
        assert size in buckets(most)
        assert live <= size < 2 * live or size == live
        assert padded(torch.arange(live), most).tolist() == [*range(live), *[live - 1] * (size - live)]


@pytest.mark.parametrize("live", [*LIVE.values(), (2,), (0, 7), (0, 1, 2, 3, 4)])
def test_a_bucketed_run_is_what_rows_means(live: tuple[int, ...]) -> None:
    graph = rows_of("%s: f32[u0, 3, 4] = aten.linear.default(%a, %c)\n%r: f32[u0, 3, 4] = aten.matmul.default(%b, %s)")
    inputs = some_inputs(8, live)
    sizes = []

    def run(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        sizes.append(tensors[0].shape[0])
        return run_block(the_rows(graph).regions[0], [*tensors, graph.weights["w"]])

    (y,) = run_bucketed(inputs["live"], [inputs["x"]], [inputs["m"]], run)
    torch.testing.assert_close(y, interpret(graph, inputs)["y"])
    assert sizes == ([bucket(len(live), 8)] if live else []), "one run of a bucket's size, or none"
