"""The long tail: an operator without a form of its own is taken apart by torch, and its parts are emitted."""

from __future__ import annotations

from collections.abc import Callable

from backends.arguments import Refused
from backends.onnx_emit.scope import Scope
from backends.parts import key_of, parts_of
from ir import Block, Node

EmitBlock = Callable[[Scope, Block], list[str]]
_LARGEST = 4096  # elements of a constant that a decomposition may bring


def decomposed(s: Scope, node: Node, emit: EmitBlock) -> list[str]:
    """Emit the parts of a node.

    Raises:
        Refused: torch does not take it apart, or only for the sizes tried.
    """
    tensors = list(dict.fromkeys(node.operands))
    key = key_of(node)
    if key not in s.emission.parts:
        s.emission.parts[key] = parts_of(node)
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
