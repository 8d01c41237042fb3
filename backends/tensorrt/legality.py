"""What a target cannot do, known before anything is built; observed with tensorrt-rtx 1.7.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from backends.base import Device
from backends.onnx_emit.pointwise import CONVERSIONS
from backends.tensorrt.library import data_type
from ir import RETURN, Node, TensorType, Value

ADDRESSED: Mapping[int, str] = {75: "SM75", 80: "SM80", 86: "SM86", 89: "SM89", 120: "SM120", 121: "SM121"}
"""Compute capabilities that TensorRT-RTX builds for without the GPU."""
ON_TARGET: Mapping[int, str] = {70: "Volta", 87: "Orin", 90: "Hopper", 100: "Blackwell", 103: "Blackwell", 110: "Thor"}
"""Those that only datacenter TensorRT can build for, on the machine itself."""
_FROM: Mapping[torch.dtype, tuple[int, str]] = {
    torch.bfloat16: (80, "bfloat16 from compute capability 8.0; use float16"),
    torch.float8_e4m3fn: (89, "fp8 from compute capability 8.9; use int8"),
}
_NARROW_ONLY: Mapping[str, tuple[int, str]] = {
    "penstock.dequantize_int4.default": (80, "int4 from compute capability 8.0; use int8"),
    "penstock.fp8_linear.default": (89, "fp8 from compute capability 8.9; use int8"),
    "penstock.nvfp4_linear.default": (120, "NVFP4 products from compute capability 12.0; use fp8 or int4"),
}


def type_fault(dtype: torch.dtype, device: Device, trt: Any) -> str:
    """Why a target cannot hold elements of a type; empty when it can."""
    short = str(dtype).removeprefix("torch.")
    if dtype == torch.float64:
        return "TensorRT has no float64; cast to float32 before"
    if dtype == torch.float8_e5m2 or data_type(trt, dtype) is None:
        return f"TensorRT has no elements of type {short}"
    least, words = _FROM.get(dtype, (0, ""))
    return f"{device.name} has {words}" if 0 < device.capability < least else ""


_REMAINDERS = ("aten.remainder.", "aten.fmod.", "aten.floor_divide.")


def node_fault(node: Node, device: Device, trt: Any) -> str:
    """Why a target cannot run an operator on these element types; empty when it can."""
    least, words = _NARROW_ONLY.get(node.op.name, (0, ""))
    if 0 < device.capability < least:
        return f"{device.name} has {words}"
    types = [v.type for v in (*node.operands, *node.results) if isinstance(v.type, TensorType)]
    for type_ in types:
        if why := type_fault(type_.dtype, device, trt):
            return why
    floors = any(word in node.op.name for word in _REMAINDERS) or node.kwargs.get("rounding_mode") == "floor"
    if floors and node.results[0].tensor.dtype.is_floating_point:
        return "TensorRT has no exact remainder of floats; compute it in whole numbers"
    if any(_stranded(v) for v in (*node.operands, *node.results)):
        return "TensorRT has uint8 at the inputs and outputs of a model only; use int32 within"
    return ""


def _stranded(value: Value) -> bool:
    """Whether a value is bytes within the model: neither converted from an input nor given out as it is made."""
    if not isinstance(value.type, TensorType) or value.type.dtype != torch.uint8:
        return False
    if value.producer is None:
        return not all(user.op.name in CONVERSIONS or user.op.name in _NARROW_ONLY for user in value.uses)
    return value.producer.op.name not in CONVERSIONS or any(user.op is not RETURN for user in value.uses)


def why_not(device: Device, rtx: bool) -> str:
    """Why nothing can be built here for a device; empty when it can.

    Args:
        device: to build for.
        rtx: whether the package builds for GPUs that are not here; the other one does for the one that is.
    """
    if device.kind != "cuda":
        return "tensorrt builds for NVIDIA GPUs only"
    if not rtx:
        here = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
        if 10 * here[0] + here[1] == device.capability:
            return ""
        return "datacenter TensorRT builds for the GPU that is present only, and that is another one or none"
    if device.capability in ADDRESSED:
        return ""
    number = f"{device.capability // 10}.{device.capability % 10}"
    family = ON_TARGET.get(device.capability)
    if family is None:
        return f"TensorRT-RTX does not know compute capability {number}"
    return (
        f"TensorRT-RTX cannot address compute capability {number} ({family}) without the GPU; "
        "finish there with `penstock build-on-target`, which uses datacenter TensorRT"
    )
