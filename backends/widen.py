"""Narrow floats on a machine that cannot multiply them: stored narrow, multiplied in float32, rounded back.

The product of two bfloat16 numbers is exact in float32, and matrix hardware adds them up in float32 as well, so
this computes what the hardware would, at the speed of float32. A result that is widened right away is not rounded in
between: never less precise than the graph says. An engine's facts show that no product runs in bf16.
"""

from __future__ import annotations

import torch

from ir import Arg, Graph, Node, TensorType, Value, map_values, op
from ir.copy import copy_graph

PRODUCTS = frozenset(
    f"aten.{name}"
    for name in (
        "linear.default",
        "matmul.default",
        "mm.default",
        "bmm.default",
        "addmm.default",
        "baddbmm.default",
        "scaled_dot_product_attention.default",
        "conv1d.default",
        "conv2d.default",
        "conv3d.default",
    )
)
_CAST = "aten.to.dtype"
_NARROW = (torch.bfloat16, torch.float16)


def is_narrow(node: Node) -> bool:
    """Whether a node is a product in bf16 or f16."""
    if node.op.name not in PRODUCTS:
        return False
    type_ = node.results[0].type
    return isinstance(type_, TensorType) and type_.dtype in _NARROW


def widened(graph: Graph) -> Graph:
    """The graph itself, or a copy whose narrow products compute in float32."""
    if not any(map(is_narrow, graph.walk())):
        return graph
    made = copy_graph(graph)
    for node in list(made.walk()):
        if is_narrow(node):
            _widen(made, node)
    return made


def _widen(graph: Graph, node: Node) -> None:
    narrow = node.result.tensor

    def cast(value: Value) -> Arg:
        if not isinstance(value.type, TensorType) or value.type.dtype not in _NARROW:
            return value
        wide = TensorType(torch.float32, value.type.shape)
        return graph.insert(op(_CAST), value, torch.float32, before=node, types=(wide,)).result

    args = tuple(map_values(a, cast) for a in node.args)
    kwargs = {k: map_values(a, cast) for k, a in node.kwargs.items()}
    wide = TensorType(torch.float32, narrow.shape)
    product = graph.insert(node.op, *args, before=node, types=(wide,), kwargs=kwargs)
    for user in list(node.result.uses):  # widened right away: rounding in between would only lose
        if user.op.name == _CAST and user.result.type == wide:
            graph.replace(user.result, product.result)
            graph.erase(user)
    if node.result.uses:
        rounded = graph.insert(op(_CAST), product.result, narrow.dtype, before=node, types=(narrow,))
        graph.replace(node.result, rounded.result)
    graph.erase(node)
