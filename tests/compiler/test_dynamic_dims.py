"""Dims that the user asked for: named, kept with their ranges, or refused in the user's words."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from compiler.capture.capture import capture
from compiler.spec import Dim
from ir import DimRange, interpret
from ir.errors import UnsupportedError
from tests.compiler.refusing import BATCH, Model, plain, refused, rows, unsupported


def test_a_sample_of_one_row() -> None:
    assert refused(Model(plain), rows(1), {"x": {0: BATCH}}) == (
        "the dynamic dims do not fit:\n"
        "  - x axis 0 is dynamic ('batch') but its sample size is 1: "
        "pass a sample of 2 or more there, torch.export takes 0 and 1 for constants"
    )


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({0: Dim("batch", 4, 8)}, "the sample size of x axis 0 is 3, outside of dim 'batch' (4 to 8)"),
        ({0: Dim("batch", 1, 2)}, "the sample size of x axis 0 is 3, outside of dim 'batch' (1 to 2)"),
        ({0: Dim("batch", 5, 4)}, "the range of dim 'batch', 5 to 4, leaves it no room to move"),
        ({0: Dim("batch", 1, 1)}, "the range of dim 'batch', 1 to 1, leaves it no room to move"),
        ({0: Dim("u0")}, "'u0' cannot name a dim"),
        ({0: Dim("a b")}, "'a b' cannot name a dim"),
        ({0: Dim("if")}, "'if' cannot name a dim"),
        ({2: BATCH}, "names axis 2, but its shape is [3, 4]"),
        ({0: BATCH, 1: BATCH}, "dim 'batch' is 3 in x axis 0, but 4 in x axis 1"),
        ({0: BATCH, 1: Dim("batch", 2)}, "has two ranges"),
        ({0: torch.export.Dim("batch")}, "penstock.Dim"),
        ([BATCH, None], "penstock.Dim"),
    ],
)
def test_dims_that_cannot_be_meant(dims: Any, message: str) -> None:
    assert message in refused(Model(plain), shapes={"x": dims})


def test_a_dim_that_the_model_makes_a_constant() -> None:
    assert unsupported(lambda self, x: x.reshape(3, 4)) == [
        "the model does not allow the dynamic dims that were asked for:",
        "  - input x axis 0, dim 'batch': the model makes it the constant 3",
        "    torch: You marked batch as dynamic but your code specialized it to be a constant (3).",
        "    hint: leave 'batch' out of dynamic_shapes, or keep Python loops and reshapes free of that size",
    ]


def test_a_dim_that_the_model_narrows() -> None:
    lines = unsupported(lambda self, x: x + 1 if x.shape[0] <= 5 else x * 2)
    assert lines[1] == "  - input x axis 0, dim 'batch': the model takes only max=5"
    assert lines[-1] == '    hint: Dim("batch", min=1, max=5)'


def test_two_dims_that_are_one() -> None:
    shapes = {"x": {0: BATCH, 1: Dim("width", 1, 64)}}
    text = refused(Model(lambda self, x: x + x.T), {"x": torch.randn(4, 4)}, shapes, UnsupportedError)
    assert "dim 'width': the model needs width = batch" in text or "dim 'batch': the model needs batch = width" in text
    assert "for both" in text


def test_a_multiple_of_two_is_told_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    def halves(self: Any, x: Tensor) -> Tensor:
        return torch.cat([x[: x.shape[0] // 2] * 2, x[x.shape[0] // 2 :] * 3]) + x.reshape(2, -1, 4).flatten(0, 1)

    with caplog.at_level(logging.WARNING, "compiler.capture.dynamic_dims"):
        graph = capture(Model(halves), rows(6), dynamic_shapes={"x": {0: Dim("rows", 2, 11)}})
    assert caplog.messages == ["dim rows must be 2*_rows"]
    assert graph.dims == {"_rows": DimRange(1, 5)}
    assert interpret(graph, rows(10))["output"].shape == (10, 4)


def test_sizes_of_one_are_checked_not_believed() -> None:
    def other_at_one(self: Any, x: Tensor) -> Tensor:
        return x + 1 if x.shape[0] == 1 else x * 2

    text = refused(Model(other_at_one), shapes={"x": {0: BATCH}}, kind=UnsupportedError)
    assert text == (
        "at batch = 1 output 'output' differs from what was captured\n"
        '  hint: leave that size out: Dim("batch", min=2)'
    )
    assert capture(Model(other_at_one), rows(), dynamic_shapes={"x": {0: Dim("batch", 2)}}).dims["batch"].min == 2


def test_sizes_of_one_that_the_model_refuses_itself() -> None:
    def needs_two(self: Any, x: Tensor) -> Tensor:
        if x.shape[0] < 2:
            raise ValueError("too few rows\nand more words")
        return x * 2

    text = refused(Model(needs_two), shapes={"x": {0: BATCH}}, kind=UnsupportedError)
    assert text.startswith("at batch = 1 the model itself fails: ValueError: too few rows\n  hint")
