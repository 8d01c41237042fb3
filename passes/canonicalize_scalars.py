"""One spelling per arithmetic idea and per cast, and sizes that are known become numbers.

    add.Scalar, sub.Scalar, mul.Scalar, div.Scalar, ...  ->  the .Tensor form with a literal
    rsub(x, y)                                            ->  sub(y, x)
    to.device, to.dtype_layout, to.other, type_as, _to_copy ->  to.dtype
    pow(x, 2)                                             ->  mul(x, x)
    sym_size(x, 1) where the size is 384                  ->  384
    two int values of the same expression                 ->  the first

Sound: torch defines each as the other; a size is a function of the dims, which types prove.
Declines a cast that moves to another device or layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ir import Arg, Block, Dim, Graph, Node, ScalarType, Value, op
from passes.base import Pass, Remark, Samples, remark
from passes.rewrite import forward, number, rewrite

CAST = "aten.to.dtype"
_ARITHMETIC = ("add", "sub", "mul", "div")  # whose .Tensor form takes a Python number
_CASTS = {
    "aten.to.device",
    "aten.to.dtype_layout",
    "aten.to.other",
    "aten.type_as.default",
    "aten._to_copy.default",
    "prims.convert_element_type.default",
}


@dataclass(frozen=True)
class CanonicalizeScalars(Pass):
    """Spells scalar arithmetic, casts and sizes in one way."""

    name: ClassVar[str] = "canonicalize-scalars"
    summary: ClassVar[str] = "add.Scalar, rsub, _to_copy, pow(x, 2), known sizes -> one spelling each"

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        said = rewrite(graph, (_known_size, _scalar_form, _reverse_sub, _cast, _square))
        for block in list(graph.blocks()):
            said += _merge_sizes(graph, block)
        return said


def _known_size(graph: Graph, node: Node) -> Remark | None:
    if len(node.results) != 1 or not isinstance(node.result.type, ScalarType) or not node.pure:
        return None
    expr = node.result.type.expr
    if not isinstance(expr, int):
        return None
    said = remark(node, True, f"the size is always {expr}")
    forward(graph, node, expr)
    return said


def _merge_sizes(graph: Graph, block: Block) -> list[Remark]:
    """Int values of the same expression are equal; within a block the first one comes first."""
    first: dict[Dim, Value] = {}
    said = []
    for node in block:
        if len(node.results) != 1 or not isinstance(node.result.type, ScalarType) or not node.pure:
            continue
        expr = node.result.type.expr
        if expr is None or node.op.name.endswith("item.default") or node.op.name == "aten._local_scalar_dense.default":
            continue
        known = first.setdefault(expr, node.result)
        if known is not node.result:
            said.append(remark(node, True, "the same size is at hand"))
            forward(graph, node, known)
    return said


def _scalar_form(graph: Graph, node: Node) -> Remark | None:
    parts = node.op.name.split(".")
    if parts[0] != "aten" or parts[-1] not in ("Scalar", "Scalar_mode") or parts[1] not in _ARITHMETIC:
        return None
    overload = "Tensor" if parts[-1] == "Scalar" else "Tensor_mode"
    args, kwargs = node.args, node.kwargs
    if parts[1] in ("add", "sub") and len(args) == 3:  # alpha is keyword-only in the tensor form
        kwargs = {**kwargs, "alpha": args[2]}
        args = args[:2]
    made = graph.insert(op(f"aten.{parts[1]}.{overload}"), *args, before=node, types=(node.result.type,),
                        name=node.result.name, kwargs=kwargs)  # fmt: skip
    forward(graph, node, made.result)
    return remark(made, True, "scalar form")


def _reverse_sub(graph: Graph, node: Node) -> Remark | None:
    if node.op.name not in ("aten.rsub.Scalar", "aten.rsub.Tensor"):
        return None
    alpha = node.arg(2, "alpha", 1)
    if alpha != 1 or not isinstance(node.args[1], Value):
        return remark(node, False, "a literal cannot stand first" if alpha == 1 else "alpha is not 1")
    made = graph.insert(op("aten.sub.Tensor"), node.args[1], node.args[0], before=node,
                        types=(node.result.type,), name=node.result.name)  # fmt: skip
    forward(graph, node, made.result)
    return remark(made, True, "rsub is sub")


def _cast(graph: Graph, node: Node) -> Remark | None:
    if node.op.name not in _CASTS:
        return None
    x = node.args[0]
    devices = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, torch.device)]
    if any(d.type != "cpu" for d in devices) or node.kwargs.get("layout") not in (None, torch.strided):
        return remark(node, False, "it moves to another device or layout")
    if not isinstance(x, Value):
        return None
    dtype: Arg = node.result.tensor.dtype
    made = graph.insert(op(CAST), x, dtype, before=node, types=(node.result.type,), name=node.result.name)
    forward(graph, node, made.result)
    return remark(made, True, "cast")


def _square(graph: Graph, node: Node) -> Remark | None:
    if node.op.name != "aten.pow.Tensor_Scalar" or number(node.args[1]) != 2.0:
        return None
    x = node.args[0]
    if not isinstance(x, Value) or x.type != node.result.type or not x.tensor.dtype.is_floating_point:
        return remark(node, False, "the square has another type")
    made = graph.insert(op("aten.mul.Tensor"), x, x, before=node, types=(x.type,), name=node.result.name)
    forward(graph, node, made.result)
    return remark(made, True, "a square is a product")
