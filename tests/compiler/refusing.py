"""Models that capture refuses, and how they are refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compiler.capture.capture import capture
from compiler.spec import Dim
from ir.errors import PenstockError, UnsupportedError, UsageError

BATCH = Dim("batch", 1, 64)


class Model(nn.Module):
    """``forward`` is the function it is made from."""

    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("kept", torch.zeros(4))
        self.alias = [self.kept]
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def rows(rows: int = 3) -> dict[str, Tensor]:
    return {"x": torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows))}


def refused(
    model: Any, inputs: Any = None, shapes: Mapping[str, Any] | None = None, kind: type[PenstockError] = UsageError
) -> str:
    with pytest.raises(kind) as caught:
        capture(model, rows() if inputs is None else inputs, dynamic_shapes=shapes)
    assert caught.value.exit_code == kind.exit_code
    return str(caught.value)


def unsupported(body: Callable[[Any, Tensor], Any], shapes: Mapping[str, Any] | None = None) -> list[str]:
    """The message, line by line; a source line of the tests is shown as LINE."""
    text = refused(Model(body), shapes=shapes or {"x": {0: BATCH}}, kind=UnsupportedError)
    return [re.sub(r"tests/compiler/\w+\.py:\d+", "LINE", line) for line in text.splitlines()]


def plain(self: Any, x: Tensor) -> Tensor:
    return self.dropout(self.layer(x))
