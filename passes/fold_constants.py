"""y = f(weights, literals)  ->  y, computed now and kept as a weight

Sound: torch itself computes it, once, with the operator's own meaning.
Profitable: nothing is left to do at run time.
Declines when the result is larger than ``max-bytes`` and than half of what goes in: a large weight that is
merely expanded or transposed would cost more memory than work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ir import Graph, Node, TensorType, Value
from ir.interpret import run_node
from passes.base import Pass, Remark, Samples, remark


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Computes at compile time what depends on no input."""

    name: ClassVar[str] = "fold-constants"
    summary: ClassVar[str] = "f(weights, literals) -> a weight, computed now"
    max_bytes: int = 1 << 20

    def run(self, graph: Graph, samples: Samples = ()) -> list[Remark]:
        """See the module."""
        params = graph.params()
        said = []
        for node in graph:
            if not _constant(node, params):
                continue
            if any(name not in graph.weights for v in node.operands if (name := params[v])):
                said.append(remark(node, False, "its weights are not at hand"))
                continue
            said.append(self._fold(graph, node, params))
        return said

    def _fold(self, graph: Graph, node: Node, params: dict[Value, str]) -> Remark:
        sizes = [_bytes(v.tensor) for v in node.results]
        inward = sum(graph.weights[params[v]].nbytes for v in set(node.operands))
        if sum(sizes) > self.max_bytes and 2 * sum(sizes) > inward:
            return remark(node, False, f"the result takes {sum(sizes)} bytes, what goes in {inward}")
        read = {v: graph.weights[params[v]] for v in node.operands}
        results = run_node(
            node, [_read(a, read) for a in node.args], {k: _read(a, read) for k, a in node.kwargs.items()}
        )
        for value, tensor in zip(node.results, results, strict=True):
            made = graph.add_param(f"folded.{value.name or node.op.name}", tensor.contiguous())
            params[made] = graph.inputs[made].name
            graph.replace(value, made)
        graph.erase(node)
        return remark(node, True, f"{sum(sizes)} bytes computed at compile time")


def _constant(node: Node, params: dict[Value, str]) -> bool:
    return (
        node.pure
        and not node.regions
        and bool(node.results)
        and all(isinstance(v.type, TensorType) and all(isinstance(d, int) for d in v.type.shape) for v in node.results)
        and all(v in params for v in node.operands)
    )


def _bytes(type_: TensorType) -> int:
    total = type_.dtype.itemsize
    for dim in type_.shape:
        assert isinstance(dim, int)
        total *= dim
    return total


def _read(arg: object, env: dict[Value, object]) -> object:
    if isinstance(arg, Value):
        return env[arg]
    return [_read(a, env) for a in arg] if isinstance(arg, tuple) else arg
