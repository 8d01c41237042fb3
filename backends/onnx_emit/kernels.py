"""What the CPU kernels of an engine cannot compute, or compute wrong, although ONNX can say it."""

from __future__ import annotations

import torch

from backends.onnx_emit.pointwise import CONVERSIONS
from backends.onnx_emit.products import PRODUCTS
from backends.onnx_emit.views import VIEWS
from backends.widen import is_narrow
from ir import COND, RETURN, ROWS, WHILE, Node, TensorType

_MOVES = (VIEWS.keys() - {"aten.repeat.default", "aten.tile.default", "aten.pixel_shuffle.default"}) | CONVERSIONS
_MOVES |= {"aten.embedding.default", "aten.index_select.default"}
_EXPANDS = frozenset({"expand", "expand_copy", "broadcast_to", "expand_as", "repeat_interleave", "meshgrid", "roll"})
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_NO_DOUBLE = frozenset({
    "erf", "gelu", "special_erfc", "erfc", "tan", "atan", "atan2", "asin", "acos", "sinh", "cosh", "asinh", "acosh",
    "atanh", "elu", "selu", "celu", "softplus", "log_sigmoid", "mish", "hardsigmoid", "hardswish", "leaky_relu",
    "group_norm", "native_group_norm", "instance_norm",
}) | _RECURRENT  # fmt: skip
"""Operators of which ONNX Runtime has no float64 kernel."""
_ADDS_UP = frozenset({"index_put", "_unsafe_index_put", "scatter", "scatter_add", "scatter_reduce", "index_add"})
_INEXACT = frozenset({"remainder", "fmod", "floor_divide"})
_INTERPOLATES = ("linear", "cubic")


def computes_wide(node: Node) -> bool:
    """Whether ONNX Runtime has to compute a node in float32: it has no kernel for bfloat16, or not for this one."""
    if node.op in (COND, WHILE, ROWS, RETURN):
        return False
    dtypes = _dtypes(node)
    if torch.bfloat16 in dtypes and (node.op.name not in _MOVES or _word(node) in _EXPANDS):
        return True
    return is_narrow(node) or (torch.float16 in dtypes and _word(node) in _ADDS_UP)


def type_fault(flavor: str, node: Node) -> str:
    """Why an engine cannot run a node with these element types; empty when it can."""
    word = _word(node)
    first = next((v.type.dtype for v in node.operands if isinstance(v.type, TensorType)), torch.float32)
    if not first.is_floating_point and ("pool" in word or "conv" in word):
        return "ONNX pools and convolves floats only"
    if not first.is_floating_point and word in _RECURRENT:
        return "ONNX has recurrent layers of floats only"
    if not first.is_floating_point and "upsample" in word and any(w in word for w in _INTERPOLATES):
        return "ONNX interpolates floats only"
    if first == torch.bool and word in _ADDS_UP - {"index_put", "_unsafe_index_put", "scatter"}:
        return "truth values cannot be added up; cast to int32 before"
    if (
        flavor == "onnxruntime"
        and torch.float64 in _dtypes(node)
        and (word in _NO_DOUBLE or any(w in word for w in ("conv", "avg_pool", "upsample")))
    ):
        return "ONNX Runtime has no float64 kernel for it; cast to float32 before"
    return _openvino_fault(node, word, first) if flavor == "openvino" else ""


def _openvino_fault(node: Node, word: str, first: torch.dtype) -> str:
    """OpenVINO's CPU computes float64 in float32, whole numbers in 32 bits, and products of them in float32."""
    results = {v.type.dtype for v in node.results if isinstance(v.type, TensorType)}
    doubles = torch.float64 in _dtypes(node)
    if doubles and (not results or any(d == torch.float64 or not d.is_floating_point for d in results)):
        return "OpenVINO computes float64 in float32; cast to float32 before"
    if node.op.name in PRODUCTS and word != "outer" and not first.is_floating_point:
        return "OpenVINO multiplies matrices of whole numbers in float32; cast to float32 before, or use int8 operators"
    floating = any(d.is_floating_point for d in results)
    rounds = word == "div" and node.arg(2, "rounding_mode", None) is not None
    if floating and (word in _INEXACT or rounds):
        return "OpenVINO's quotients and remainders of floats are not exact enough to be rounded; use whole numbers"
    if first == torch.bool and word in ("sort", "argsort", "topk"):
        return "OpenVINO does not order truth values; cast to int32 before"
    if word == "pow" and not floating and node.arg(1, "exponent", None) not in (1, 2):
        return "OpenVINO raises whole numbers to a power in float32; multiply instead"
    return ""


def _word(node: Node) -> str:
    return node.op.name.split(".")[1] if "." in node.op.name else node.op.name


def _dtypes(node: Node) -> set[torch.dtype]:
    return {v.type.dtype for v in (*node.operands, *node.results) if isinstance(v.type, TensorType)}
