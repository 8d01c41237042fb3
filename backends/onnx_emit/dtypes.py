"""Element types of torch and of ONNX, and torch's promotion of mixed operands."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from onnx import TensorProto

from ir import Arg, ScalarType, TensorType, Value

ONNX_TYPES: Mapping[torch.dtype, int] = {
    torch.float64: TensorProto.DOUBLE,
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float8_e4m3fn: TensorProto.FLOAT8E4M3FN,
    torch.float8_e5m2: TensorProto.FLOAT8E5M2,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.int16: TensorProto.INT16,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.uint16: TensorProto.UINT16,
    torch.uint32: TensorProto.UINT32,
    torch.uint64: TensorProto.UINT64,
    torch.bool: TensorProto.BOOL,
}
TORCH_TYPES: Mapping[int, torch.dtype] = {code: dtype for dtype, code in ONNX_TYPES.items()}
SCALARS: Mapping[str, torch.dtype] = {"int": torch.int64, "float": torch.float64, "bool": torch.bool}
"""What a number made while the model runs is kept as: as wide as Python's."""


class Refused(Exception):
    """An operator, or one use of it, has no ONNX form here; the text says what is missing."""


def onnx_type(dtype: torch.dtype) -> int:
    """ONNX's number of an element type."""
    if dtype not in ONNX_TYPES:
        raise Refused(f"ONNX has no elements of type {dtype}")
    return ONNX_TYPES[dtype]


def dtype_of(value: Value) -> torch.dtype:
    """Element type of a tensor, or the type that a number is kept as."""
    if isinstance(value.type, TensorType):
        return value.type.dtype
    if isinstance(value.type, ScalarType):
        return SCALARS[value.type.kind]
    raise Refused("reads a result that is absent")


def promoted(*args: Arg) -> torch.dtype:
    """The type in which torch computes on mixed operands: tensors, 0-d tensors, numbers."""
    return torch.result_type(*map(_stand_in, args)) if len(args) == 2 else _promote_many(args)


def _promote_many(args: tuple[Arg, ...]) -> torch.dtype:
    from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND, elementwise_dtypes

    kind = ELEMENTWISE_TYPE_PROMOTION_KIND.NO_OPMATH
    return elementwise_dtypes(*map(_stand_in, args), type_promotion_kind=kind)[1]


def _stand_in(arg: Arg) -> torch.Tensor | bool | int | float:
    if isinstance(arg, Value):
        if isinstance(arg.type, TensorType):
            return torch.empty((1,) * arg.type.rank, dtype=arg.type.dtype, device="meta")
        if isinstance(arg.type, ScalarType):
            return {"int": 1, "float": 1.0, "bool": True}[arg.type.kind]
    if isinstance(arg, (bool, int, float)):
        return arg
    raise Refused(f"cannot compute with {arg!r}")


def widest(dtypes: tuple[torch.dtype, ...]) -> torch.dtype:
    """The common type of tensors that are joined."""
    return reduce(torch.promote_types, dtypes)


def number(arg: Arg) -> float:
    """A number that is known when compiling."""
    if isinstance(arg, (int, float)):
        return float(arg)
    raise Refused("needs a number that is known when compiling")


def axis_of(x: Value, dim: int) -> int:
    """A dim counted from the start."""
    if not x.tensor.rank:
        raise Refused("a dim of a single number")
    return dim % x.tensor.rank
