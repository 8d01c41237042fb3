"""The long tail: an operator without a form of its own is taken apart by torch, and its parts are emitted.

Torch's core decompositions are what torch.export itself uses; nothing is guessed here. An operator that torch
leaves whole stays refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

from backends.onnx_emit.dtypes import Refused
from backends.onnx_emit.scope import Scope
from ir import Arg, Block, Graph, Node, TensorType, Value, evaluate, map_values, op, symbols_of
from ir.exported import import_program

EmitBlock = Callable[[Scope, Block], list[str]]
_LARGEST = 4096  # elements of a constant that a decomposition may bring
_SIZES = (11, 13, 17, 19, 23, 29, 31, 37)  # primes: no accident looks like a law


def decomposed(s: Scope, node: Node, emit: EmitBlock) -> list[str]:
    """Emit the parts of a node.

    Raises:
        Refused: torch does not take it apart, or only for the sizes tried.
    """
    tensors = list(dict.fromkeys(node.operands))
    if node.op.random or not all(isinstance(v.type, TensorType) for v in tensors):
        raise Refused("no ONNX form is known; write it with other operators")
    key = _key(node, tensors)
    if key not in s.emission.parts:  # forty equal layers cost as much as one
        s.emission.parts[key] = _parts(node, tensors)
    graph = s.emission.parts[key]
    if isinstance(graph, str):
        raise Refused(graph)
    given = iter(tensors)
    sources: dict[str, tuple[str, int]] = {}
    for value, spec in graph.inputs.items():
        if spec.kind == "param":
            constant = graph.weights[spec.name]
            if constant.numel() > _LARGEST:
                raise Refused("its parts hold a large constant")
            s[value] = s.const(constant, constant.dtype)
            continue
        s[value] = s[next(given)]
        for axis, dim in enumerate(value.tensor.shape):
            if not isinstance(dim, int) and dim.is_Symbol:
                sources.setdefault(dim.name, (s[value], axis))
    outside, s.emission.sources = s.emission.sources, sources
    try:
        return emit(s, graph.body)
    finally:
        s.emission.sources = outside


def _key(node: Node, tensors: list[Value]) -> str:
    def named(value: Value) -> Arg:
        return f"%{tensors.index(value)}: {value.type!r}"

    args = [map_values(a, named) for a in (*node.args, *node.kwargs.values())]
    return repr((node.op.name, args, list(node.kwargs)))


def _parts(node: Node, tensors: list[Value]) -> Graph | str:
    """The node as a graph of its own, in torch's core operators; or why there is none."""
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
    except Exception as error:
        raise Refused("no ONNX form is known, and torch does not take it apart") from error
    expected = sum(not isinstance(d, int) for v in tensors for d in v.tensor.shape)
    found = sum(not isinstance(d, int) for _, v in graph.arguments("input") for d in v.tensor.shape)
    if found != expected or len(list(graph.arguments("input"))) != len(tensors):
        return "no ONNX form is known, and torch takes it apart only for fixed sizes"
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
