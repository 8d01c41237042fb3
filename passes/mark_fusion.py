"""a = f(x); b = g(a)  ->  the same, both marked as one kernel (hint ``fuse=N``)

A chain of elementwise operations, with the matmul or the norm that feeds it, is one kernel in every engine
we emit for. The marks change nothing in the meaning: the cost model counts a group once, and engines that
we generate ourselves follow them.

Profitable: the values between are never written to memory.
Declines to join when the value between has another reader, or the group is full (``max-nodes``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ir import RETURN, Graph, Node
from passes.base import Pass, Remark, Samples, remark
from passes.canonicalize_scalars import CAST

_HEADS = {
    "aten.linear.default", "aten.addmm.default", "aten.mm.default", "aten.matmul.default", "aten.bmm.default",
    "aten.conv1d.default", "aten.conv2d.default", "aten.layer_norm.default", "aten.rms_norm.default",
    "aten.group_norm.default", "aten.batch_norm.default", "penstock.int8_linear_dynamic.default",
    "penstock.int8_linear_static.default", "penstock.fp8_linear.default", "penstock.nvfp4_linear.default",
}  # fmt: skip
_POINTWISE = {CAST, "aten.gelu.default", "aten.silu.default", "aten.dropout.default"}


@dataclass(frozen=True)
class MarkFusion(Pass):
    """Marks which neighbours run as one kernel."""

    name: ClassVar[str] = "mark-fusion"
    summary: ClassVar[str] = "a matmul or norm and the elementwise chain after it -> one group (hint)"
    max_nodes: int = 8

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        said: list[Remark] = []
        groups: dict[Node, list[Node]] = {}
        for node in graph.walk():
            if node.op is RETURN or not _pointwise(node):
                continue
            feeder = self._feeder(node, groups, said)
            if feeder is not None:
                group = groups.setdefault(feeder, [feeder])
                group.append(node)
                groups[node] = group
        self._mark(graph, groups, said)
        return said

    def _feeder(self, node: Node, groups: dict[Node, list[Node]], said: list[Remark]) -> Node | None:
        for value in node.operands:
            made_by = value.producer
            if made_by is None or made_by.block is not node.block:
                continue
            if not (_pointwise(made_by) or made_by.op.name in _HEADS) or value.type != node.result.type:
                continue
            if len(value.uses) > 1:
                said.append(remark(node, False, "the value before it has another reader"))
            elif len(groups.get(made_by, ())) >= self.max_nodes:
                said.append(remark(node, False, f"the group is full ({self.max_nodes} nodes)"))
            else:
                return made_by
        return None

    def _mark(self, graph: Graph, groups: dict[Node, list[Node]], said: list[Remark]) -> None:
        number: dict[int, int] = {}
        for node in graph.walk():
            if node in groups:
                group = groups[node]
                mark = number.setdefault(id(group), len(number))
                if node.hints.get("fuse") != mark:
                    graph.set_hint(node, "fuse", mark)
                    if node is group[0]:
                        said.append(remark(node, True, f"one kernel with {len(group) - 1} after it"))


def _pointwise(node: Node) -> bool:
    if len(node.results) != 1 or not node.pure or node.regions:
        return False
    return node.op.name in _POINTWISE or torch.Tag.pointwise in getattr(node.op.target, "tags", ())
