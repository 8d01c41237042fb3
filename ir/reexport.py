"""From the IR back to torch: a module, and an ExportedProgram that computes exactly the same."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from ir.core import Arg, Block, Graph, Node, Value
from ir.dims import evaluate, symbols_of
from ir.errors import IRError
from ir.ops import COND, RETURN, WHILE
from ir.rows import lowered
from ir.types import TensorType

_TORCH = os.path.dirname(torch.__file__) + os.sep


Forms = Mapping[str, Callable[..., Any]]
"""Operator name to a function that is called in its place."""
_AS_THEY_ARE: Forms = MappingProxyType({})


def param_attributes(graph: Graph) -> dict[str, str]:
    """Name of each weight to the name of the buffer that holds it in the module."""
    names = (name for name, _ in graph.arguments("param"))
    return {name: f"p{index}_{re.sub(r'[^A-Za-z0-9_]', '_', name)}" for index, name in enumerate(names)}


def to_module(graph: Graph, forms: Forms = _AS_THEY_ARE) -> fx.GraphModule:
    """The graph as a torch module: user and state inputs in, a flat tuple of outputs out."""
    graph = lowered(graph, "compacted")
    root = torch.nn.Module()
    attributes = param_attributes(graph)
    names: dict[Value, str] = {}
    for name, value in graph.arguments("param"):
        root.register_buffer(attributes[name], graph.weights[name])
        names[value] = attributes[name]
    return _build(root, graph.body, names, forms)


def _build(
    root: torch.nn.Module, block: Block, params: Mapping[Value, str], forms: Forms, bare: bool = False
) -> fx.GraphModule:
    """``bare``: the only result is returned as it is, not in a tuple; while_loop wants its test so."""
    made = fx.Graph()
    env: dict[Value, fx.Node] = {}
    for value in block.args:
        if value not in params:
            env[value] = made.placeholder(re.sub(r"\W", "_", value.name) or "arg")
    for value, attribute in params.items():
        if value.uses:
            env[value] = made.get_attr(attribute)

    def read(arg: Arg) -> Any:
        if isinstance(arg, Value):
            return env[arg]
        return [read(a) for a in arg] if isinstance(arg, tuple) else arg

    for node in block:
        if node.op is RETURN:
            values = tuple(_fresh(made, a, block, params, read) for a in node.args)
            made.output(values[0] if bare else values)
            continue
        args = [read(a) for a in node.args]
        if node.regions:
            regions = []
            for index, region in enumerate(node.regions):
                attribute = f"region_{len(list(root.named_children()))}"
                root.add_module(
                    attribute, _build(torch.nn.Module(), region, {}, forms, node.op is WHILE and index == 0)
                )
                regions.append(made.get_attr(attribute))
            groups = [tuple(a) if isinstance(a, list) else a for a in args]
            if node.op is COND:
                call = made.call_function(torch.ops.higher_order.cond, (groups[0], *regions, groups[1]))
            else:
                call = made.call_function(torch.ops.higher_order.while_loop, (*regions, *groups))
        else:
            target = forms.get(node.op.name, node.op.target)
            assert target is not None
            call = made.call_function(target, tuple(args), {k: read(a) for k, a in node.kwargs.items()})
        several = node.regions or len(node.results) != 1 or _returns_list(node)
        for index, value in enumerate(node.results):
            env[value] = made.call_function(_getitem, (call, index)) if several else call
    return fx.GraphModule(root, made)


def _returns_list(node: Node) -> bool:
    schema = getattr(node.op.target, "_schema", None)
    return schema is not None and len(schema.returns) == 1 and str(schema.returns[0].type) == "List[Tensor]"


def _getitem(values: Any, index: int) -> Any:
    return values[index]


def _fresh(made: fx.Graph, arg: Arg, block: Block, params: Mapping[Value, str], read: Any) -> Any:
    """torch.cond forbids a branch that returns its own argument, or a view of it: copy."""
    if not params and isinstance(arg, Value) and isinstance(arg.type, TensorType):
        return made.call_function(torch.ops.aten.clone.default, (read(arg),))
    return read(arg)


def example_inputs(graph: Graph, sizes: Mapping[str, int] | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs of the right types: floats from a normal distribution, integers 0 or 1.

    Sizes not given are small, above one and within the bounds.
    """
    chosen = dict(sizes or {})
    for index, (name, bounds) in enumerate(graph.dims.items()):
        small = max(bounds.min, 2 + index)
        chosen.setdefault(name, small if bounds.max is None else min(small, bounds.max))
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(value.tensor, chosen, generator) for name, value in _runtime_arguments(graph)}


def _runtime_arguments(graph: Graph) -> Iterator[tuple[str, Value]]:
    yield from ((s.name, v) for v, s in graph.inputs.items() if s.kind in ("input", "state"))


def _random(type_: TensorType, sizes: Mapping[str, int], generator: torch.Generator) -> torch.Tensor:
    shape = [evaluate(d, sizes) for d in type_.shape]
    if type_.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(type_.dtype)
    if type_.dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.complex64).to(type_.dtype)
    return torch.randint(0, 2, shape, generator=generator).to(type_.dtype)


def to_exported(
    graph: Graph, inputs: Mapping[str, torch.Tensor] | None = None, forms: Forms = _AS_THEY_ARE, *, strict: bool = False
) -> ExportedProgram:
    """The graph as an ExportedProgram that computes exactly the same.

    Args:
        graph: any verified graph.
        inputs: sample inputs, every dynamic size at least 2; made from the types when absent.
        forms: functions that are traced in place of operators.
        strict: hold to the ranges of the dims, also where that makes torch refuse.

    Raises:
        IRError: torch refuses the program.
    """
    sample = dict(inputs) if inputs is not None else example_inputs(graph)
    order = list(_runtime_arguments(graph))
    given = tuple(sample[name] for name, _ in order)
    refused: Exception | None = None
    # named dims keep the ranges, and leave no size arithmetic behind; torch does not take them everywhere
    ways = ((_named_shapes(graph), False), (_free_shapes(graph), True))
    for shapes, deferred in ways[:1] if strict else ways:
        try:
            with torch.no_grad():
                return torch.export.export(
                    to_module(graph, forms),
                    given,
                    dynamic_shapes=shapes if order else None,
                    prefer_deferred_runtime_asserts_over_guards=deferred,
                )
        except Exception as error:  # noqa: BLE001  (torch raises many kinds; the last one is told)
            refused = error
    raise IRError(f"torch.export does not take the graph back: {refused}") from refused


def _free_shapes(graph: Graph) -> tuple[Any, ...]:
    return tuple(
        {axis: torch.export.Dim.AUTO for axis, dim in enumerate(v.tensor.shape) if not isinstance(dim, int)} or None
        for _, v in _runtime_arguments(graph)
    )


def _named_shapes(graph: Graph) -> tuple[Any, ...]:
    """Dims by name, with their ranges; what is not linear in one of them is left to torch."""
    made: dict[str, Any] = {}
    for name, bounds in graph.dims.items():
        with contextlib.suppress(Exception):  # not every name is one for torch
            made[name] = torch.export.Dim(name, min=bounds.min, max=bounds.max)

    def read(dim: Any) -> Any:
        names = symbols_of(dim)
        if len(names) != 1 or not names <= made.keys():
            return torch.export.Dim.AUTO
        (name,) = names
        offset = evaluate(dim, {name: 0})
        factor = evaluate(dim, {name: 1}) - offset
        if evaluate(dim, {name: 1000}) != factor * 1000 + offset or factor < 1:
            return torch.export.Dim.AUTO
        scaled = made[name] if factor == 1 else factor * made[name]
        return scaled + offset if offset else scaled

    return tuple(
        {axis: read(dim) for axis, dim in enumerate(v.tensor.shape) if not isinstance(dim, int)} or None
        for _, v in _runtime_arguments(graph)
    )
