"""Narrow floats on a machine that cannot multiply them: stored narrow, multiplied in float32, rounded back.

The product of two bfloat16 numbers is exact in float32, and matrix hardware adds them up in float32 as well, so
this computes what the hardware would, at the speed of float32. A result that is widened right away is not rounded in
between: never less precise than the graph says. An engine's facts show that no product runs in bf16.
"""

from __future__ import annotations

from collections.abc import Callable

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


def widened(graph: Graph, wanted: Callable[[Node], bool] = is_narrow) -> Graph:
    """The graph itself, or a copy in which the wanted nodes compute in float32.

    Args:
        graph: left as it is.
        wanted: whether a node with narrow floats must be widened; by default the products.
    """
    if not any(map(wanted, graph.walk())):
        return graph
    made = copy_graph(graph)
    for node in list(made.walk()):
        if wanted(node):
            _widen(made, node)
    return made


def _widen(graph: Graph, node: Node) -> None:
    def wide(arg: Value) -> Arg:
        if not _has_narrow(arg):
            return arg
        type_ = TensorType(torch.float32, arg.tensor.shape)
        return graph.insert(op(_CAST), arg, torch.float32, before=node, types=(type_,)).result

    def changed(arg: Arg) -> Arg:
        return torch.float32 if arg in _NARROW else map_values(arg, wide)

    types = tuple(TensorType(torch.float32, v.tensor.shape) if _has_narrow(v) else v.type for v in node.results)
    made = graph.insert(
        node.op, *map(changed, node.args), before=node, types=types,
        kwargs={k: changed(a) for k, a in node.kwargs.items()}, origin=node.origin,
    )  # fmt: skip
    for old, new in zip(node.results, made.results, strict=True):
        for user in list(old.uses):  # widened right away: rounding in between would only lose
            if old.type != new.type and user.op.name == _CAST and user.result.type == new.type:
                graph.replace(user.result, new)
                graph.erase(user)
        if not old.uses:
            continue
        if old.type != new.type:
            new = graph.insert(op(_CAST), new, old.tensor.dtype, before=node, types=(old.type,)).result
        graph.replace(old, new)
    graph.erase(node)


def _has_narrow(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype in _NARROW
