"""What the CPU kernels of an engine cannot compute, although ONNX can say it."""

from __future__ import annotations

import torch

from backends.onnx_emit.pointwise import CONVERSIONS
from backends.onnx_emit.views import VIEWS
from ir import Node, TensorType

_MOVES = (VIEWS.keys() - {"aten.repeat.default", "aten.tile.default"}) | CONVERSIONS
_MOVES |= {"aten.embedding.default", "aten.index_select.default"}
_EXPANDS = frozenset({"expand", "expand_copy", "broadcast_to", "expand_as", "repeat_interleave", "meshgrid", "roll"})
_NO_DOUBLE = frozenset({"erf", "gelu", "special_erfc", "erfc"})


def type_fault(flavor: str, node: Node) -> str:
    """Why an engine cannot run a node with these element types; empty when it can."""
    dtypes = {v.type.dtype for v in (*node.operands, *node.results) if isinstance(v.type, TensorType)}
    word = node.op.name.split(".")[1] if "." in node.op.name else node.op.name
    if "pool" in word and not node.operands[0].tensor.dtype.is_floating_point:
        return "ONNX pools floats only"
    if flavor != "onnxruntime":
        return ""
    if torch.bfloat16 in dtypes and (node.op.name not in _MOVES or word in _EXPANDS):
        return "ONNX Runtime has no bfloat16 kernels for the CPU; cast to float32 before"
    if torch.float64 in dtypes and (word in _NO_DOUBLE or "conv" in word):
        return "ONNX Runtime has no float64 kernel for it; cast to float32 before"
    return ""
