"""Types of values: tensors with symbolic shapes, and the scalars that describe them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ir.dims import Dim, show_dim

DTYPES: Mapping[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8e4m3": torch.float8_e4m3fn,
    "f8e5m2": torch.float8_e5m2,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "u16": torch.uint16,
    "u32": torch.uint32,
    "u64": torch.uint64,
    "bool": torch.bool,
    "c32": torch.complex32,
    "c64": torch.complex64,
    "c128": torch.complex128,
}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and shape.

    >>> TensorType(torch.float32, (2, 64))
    f32[2, 64]
    """

    dtype: torch.dtype
    shape: tuple[Dim, ...]

    def __repr__(self) -> str:
        return f"{DTYPE_NAMES[self.dtype]}[{', '.join(map(show_dim, self.shape))}]"

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def numel(self) -> Dim:
        """Number of elements, symbolic where the shape is."""
        total: Dim = 1
        for dim in self.shape:
            total = total * dim
        return total


@dataclass(frozen=True, slots=True)
class ScalarType:
    """A Python number made while the model runs; ``kind`` is int, float or bool.

    An int that is a function of the dims says which (``expr``); a fixed one is a literal instead.
    """

    kind: str
    expr: Dim | None = None

    def __repr__(self) -> str:
        return self.kind if self.expr is None else f"{self.kind}<{show_dim(self.expr)}>"


@dataclass(frozen=True, slots=True)
class NoneType:
    """The absent result that some operators return."""

    def __repr__(self) -> str:
        return "none"


Type: TypeAlias = TensorType | ScalarType | NoneType
