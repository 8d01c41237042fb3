"""NaN and infinity among weights are found before they spread."""

from __future__ import annotations

import pytest
import torch

from compiler.artifact import (
    check_weights,
    find_nonfinite,
)
from ir.errors import UsageError


def test_nonfinite_weights() -> None:
    large = torch.zeros(3, 1 << 20)
    large[2, 7] = torch.nan
    weights = {
        "good": torch.ones(3),
        "large": large,
        "strided": large.t(),
        "line": large[:, 7],
        "inf": torch.tensor([1.0, torch.inf, -torch.inf]),
        "mask": torch.full((4, 4), -torch.inf).triu(1),
        "half": torch.tensor([torch.nan], dtype=torch.bfloat16),
        "fp8": torch.tensor([1.0, torch.nan]).to(torch.float8_e4m3fn),
        "complex": torch.tensor([complex(0, float("nan"))]),
        "complex half": torch.view_as_complex(torch.tensor([[0, torch.inf]], dtype=torch.float16)),
        "int": torch.tensor([1]),
        "none": torch.empty(0),
        "scalar": torch.tensor(torch.nan),
    }
    found = {f.name: (f.nan, f.inf) for f in find_nonfinite(weights)}
    assert found == {
        "large": (1, 0), "strided": (1, 0), "line": (1, 0), "inf": (0, 2), "half": (1, 0), "fp8": (1, 0),
        "complex": (1, 0), "complex half": (0, 1), "scalar": (1, 0),
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"9 of 13 weights.*large \(1 NaN\)") as caught:
        check_weights(weights)
    assert "--allow-nonfinite" in caught.value.hint
    assert check_weights(weights, allow_nonfinite=True) == list(found)
    assert check_weights({"good": torch.ones(3)}) == []
