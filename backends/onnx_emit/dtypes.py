"""Element types of torch and of ONNX, and torch's promotion of mixed operands."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from onnx import TensorProto

from backends.arguments import Refused
from ir import Value

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


def onnx_type(dtype: torch.dtype) -> int:
    """ONNX's number of an element type."""
    if dtype not in ONNX_TYPES:
        raise Refused(f"ONNX has no elements of type {dtype}")
    return ONNX_TYPES[dtype]


def axis_of(x: Value, dim: int) -> int:
    """A dim counted from the start."""
    if not x.tensor.rank:
        raise Refused("a dim of a single number")
    return dim % x.tensor.rank
