"""Types are plain values with one spelling each."""

from __future__ import annotations

import pytest
import torch

from ir import NoneType, ScalarType, TensorType, symbol
from ir.types import DTYPE_NAMES, DTYPES

N = symbol("n")


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (TensorType(torch.float32, (2, 64)), "f32[2, 64]"),
        (TensorType(torch.bool, ()), "bool[]"),
        (TensorType(torch.int8, (2 * N + 1, 0)), "i8[2*n + 1, 0]"),
        (ScalarType("int"), "int"),
        (ScalarType("int", 2 * N), "int<2*n>"),
        (ScalarType("float"), "float"),
        (NoneType(), "none"),
    ],
)
def test_text(type_: object, text: str) -> None:
    assert repr(type_) == text


def test_equal_by_value() -> None:
    assert TensorType(torch.float32, (N,)) == TensorType(torch.float32, (symbol("n"),))
    assert len({TensorType(torch.float32, (N,)), TensorType(torch.float32, (N,))}) == 1
    assert TensorType(torch.float32, (N,)) != TensorType(torch.float16, (N,))
    assert ScalarType("int") != ScalarType("int", N)


def test_dtype_names_are_inverses() -> None:
    assert {DTYPE_NAMES[dtype]: dtype for dtype in DTYPES.values()} == dict(DTYPES)


def test_rank_and_number_of_elements() -> None:
    type_ = TensorType(torch.float32, (N, 3, 4))
    assert type_.rank == 3
    assert type_.numel == 12 * N
    assert TensorType(torch.float32, ()).numel == 1
