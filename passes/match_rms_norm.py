"""x * rsqrt(mean(x * x, -1) + eps) [* w]  ->  rms_norm(x, [n], w, eps)

Sound: the definition of RMSNorm (Zhang and Sennrich, 1910.07467); torch's kernel may sum in another order.
Profitable: one pass over memory instead of five; engines have a kernel for it.
Declines when an inner value has another reader, when the weight is not one vector over the last dim, when
the mean is not over the last dim, or when it is computed in less than float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ir import Arg, Graph, Node, TensorType, Value, op
from passes.base import Pass, Remark, Samples, Tolerance, remark
from passes.drop_dead_nodes import drop_chain
from passes.rewrite import forward, ints, number, producer, rewrite

RMS_NORM = "aten.rms_norm.default"
_MUL = "aten.mul.Tensor"


@dataclass(frozen=True)
class MatchRmsNorm(Pass):
    """Puts a decomposed RMSNorm back into one node."""

    name: ClassVar[str] = "match-rms-norm"
    summary: ClassVar[str] = "x * rsqrt(mean(x*x) + eps) * w -> rms_norm(x, w)"
    tolerance: ClassVar[Tolerance] = Tolerance(rtol=1e-4, atol=1e-5)

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        return rewrite(graph, (_norm, _weight))


def _norm(graph: Graph, node: Node) -> Remark | None:
    if node.op.name != _MUL:
        return None
    for x, other in (node.args[:2], node.args[1::-1]):
        inverse = producer(other, "aten.rsqrt.default")
        if inverse is None or not isinstance(x, Value):
            continue
        shifted = producer(inverse.args[0], "aten.add.Tensor")
        mean = producer(shifted.args[0], "aten.mean.dim") if shifted else None
        square = producer(mean.args[0], _MUL) if mean else None
        if shifted is None or mean is None or square is None or square.args[:2] != (x, x):
            continue
        return _to_norm(graph, node, x, shifted, mean)
    return None


def _to_norm(graph: Graph, node: Node, x: Value, shifted: Node, mean: Node) -> Remark | None:
    eps = number(shifted.args[1])
    axes = ints(mean.args[1])
    size = x.tensor.shape[-1] if x.tensor.rank else None
    if eps is None:
        return remark(node, False, "eps is not a literal")
    if axes is None or [a % x.tensor.rank for a in axes] != [x.tensor.rank - 1] or mean.arg(2, "keepdim") is not True:
        return remark(node, False, "the mean is not over the last dim")
    if not isinstance(size, int):
        return remark(node, False, "the last dim is dynamic")
    if x.tensor.dtype not in (torch.float32, torch.float64):
        return remark(node, False, f"it is computed in {x.tensor.dtype}")
    made = graph.insert(
        op(RMS_NORM), x, (size,), None, eps, before=node, types=(node.result.type,), name=node.result.name
    )
    forward(graph, node, made.result)
    drop_chain(graph, mean, shifted)
    return remark(made, True, "five operations are one")


def _weight(graph: Graph, node: Node) -> Remark | None:
    """W * rms_norm(x, None)  ->  rms_norm(x, w)."""
    if node.op.name != _MUL:
        return None
    for first, weight in (node.args[:2], node.args[1::-1]):
        norm = producer(first, RMS_NORM)
        if norm is None or not isinstance(weight, Value) or norm.arg(2, "weight") is not None:
            continue
        if len(norm.result.uses) > 1:
            return remark(node, False, "the normed value has another reader")
        if weight.tensor.shape != norm.result.tensor.shape[-1:] or weight.type != _vector(norm.args[0]):
            return remark(node, False, "the weight is not one vector over the last dim, of its type")
        made = graph.insert(op(RMS_NORM), norm.args[0], norm.args[1], weight, norm.arg(3, "eps"), before=node,
                            types=(node.result.type,), name=node.result.name)  # fmt: skip
        forward(graph, node, made.result)
        graph.erase(norm)
        return remark(made, True, "the weight is part of the norm")
    return None


def _vector(x: Arg) -> object:
    return TensorType(x.tensor.dtype, x.tensor.shape[-1:]) if isinstance(x, Value) else None
