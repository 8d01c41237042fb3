"""The long tail of operators: torch takes one apart into its core operators, as torch.export itself does.

Nothing is guessed here; an operator that torch leaves whole stays refused. Every backend that has no form of an
operator emits its parts instead.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from ir import Arg, Graph, Node, TensorType, Value, evaluate, map_values, op, symbols_of
from ir.exported import import_program

_SIZES = (11, 13, 17, 19, 23, 29, 31, 37)  # primes: no accident looks like a law


def key_of(node: Node) -> str:
    """Equal for nodes that have equal parts: forty equal layers cost as much as one."""
    tensors = list(dict.fromkeys(node.operands))

    def named(value: Value) -> Arg:
        return f"%{tensors.index(value)}: {value.type!r}"

    args = [map_values(a, named) for a in (*node.args, *node.kwargs.values())]
    return repr((node.op.name, args, list(node.kwargs)))


def parts_of(node: Node) -> Graph | str:
    """The node as a graph of its own, in torch's core operators; or why there is none.

    The graph's inputs are the distinct values that the node reads, in order; constants are its params.
    """
    tensors = list(dict.fromkeys(node.operands))
    if node.op.random or not all(isinstance(v.type, TensorType) for v in tensors):
        return "no form is known; write it with other operators"
    names = sorted({name for v in tensors for d in v.tensor.shape for name in symbols_of(d)})
    sizes = dict(zip(names, itertools.chain(_SIZES, itertools.count(41, 2)), strict=False))
    samples = tuple(torch.zeros([evaluate(d, sizes) for d in v.tensor.shape], dtype=v.tensor.dtype) for v in tensors)
    dynamic = tuple(
        {axis: torch.export.Dim.AUTO for axis, d in enumerate(v.tensor.shape) if not isinstance(d, int)} or None
        for v in tensors
    )
    try:
        with torch.no_grad():
            program = torch.export.export(_Call(node, tensors), samples, dynamic_shapes=(dynamic,))
            graph = import_program(program.run_decompositions(), "parts")
    except Exception:  # noqa: BLE001  (torch.export fails in many ways; all of them mean the same here)
        return "no form is known, and torch does not take it apart"
    expected = sum(not isinstance(d, int) for v in tensors for d in v.tensor.shape)
    found = sum(not isinstance(d, int) for _, v in graph.arguments("input") for d in v.tensor.shape)
    if found != expected or len(list(graph.arguments("input"))) != len(tensors):
        return "no form is known, and torch takes it apart only for fixed sizes"
    return graph


class _Call(torch.nn.Module):
    """One call, its tensors as inputs."""

    def __init__(self, node: Node, tensors: list[Value]) -> None:
        super().__init__()
        self._node = node
        self._tensors = tensors

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Run the operator."""
        table = dict(zip(self._tensors, tensors, strict=True))

        def read(arg: Arg) -> Any:
            if isinstance(arg, Value):
                return table[arg]
            return [read(a) for a in arg] if isinstance(arg, tuple) else arg

        target = op(self._node.op.name).target
        assert target is not None
        return target(*map(read, self._node.args), **{k: read(v) for k, v in self._node.kwargs.items()})
