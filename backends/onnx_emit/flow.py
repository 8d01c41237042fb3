"""``cond`` becomes If, ``while`` becomes Loop. Regions are closed in the IR; ONNX branches read outer names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from onnx import GraphProto, TensorProto, TypeProto, helper

from backends.arguments import SCALARS, Refused
from backends.onnx_emit.dtypes import onnx_type
from backends.onnx_emit.scope import Scope
from ir import Arg, Block, Node, ScalarType, TensorType, Type, Value, show_dim

EmitBlock = Callable[[Scope, Block], list[str]]
"""Emits the nodes of a block and gives the names of what it returns."""


def proto_type(type_: Type, shaped: bool = True) -> TypeProto:
    """ONNX type of a value; sizes that are no fixed number become parameters."""
    if isinstance(type_, ScalarType):
        return helper.make_tensor_type_proto(onnx_type(SCALARS[type_.kind]), [1])
    if not isinstance(type_, TensorType):
        raise Refused("carries a result that is absent")
    shape = [d if isinstance(d, int) else show_dim(d) for d in type_.shape] if shaped else None
    return helper.make_tensor_type_proto(onnx_type(type_.dtype), shape)


def bind(s: Scope, block: Block, values: Sequence[str]) -> None:
    """Let the arguments of a region mean outer names."""
    for argument, name in zip(block.args, values, strict=True):
        s[argument] = name


def operands_of(s: Scope, args: Arg) -> list[str]:
    """Names of what is handed to a region."""
    found = []
    for arg in args if isinstance(args, tuple) else ():
        if isinstance(arg, Value):
            found.append(s[arg])
        elif isinstance(arg, (bool, int, float)):
            kind = "bool" if isinstance(arg, bool) else "int" if isinstance(arg, int) else "float"
            found.append(s.const([arg], SCALARS[kind]))
        else:
            raise Refused(f"hands {arg!r} to a region")
    return found


def conditional(s: Scope, node: Node, emit: EmitBlock) -> list[str]:
    """``cond(pred, operands)``."""
    predicate, operands = node.args
    taken = s.tensor(predicate, torch.bool)
    if isinstance(predicate, Value) and isinstance(predicate.type, TensorType) and predicate.type.rank:
        taken = s.op("Reshape", taken, s.ints())
    given = operands_of(s, operands)
    branches: list[GraphProto] = []
    for label, region in zip(("then", "else"), node.regions, strict=True):
        inner = Scope(s.emission, s)
        bind(inner, region, given)
        results = [_unique(inner, name) for name in emit(inner, region)]
        outputs = [
            helper.make_value_info(name, proto_type(v.type, shaped=False))
            for name, v in zip(results, node.results, strict=True)
        ]
        branches.append(helper.make_graph(inner.nodes, s.emission.fresh(label), [], outputs))
    outputs = [s.emission.fresh("If") for _ in node.results]
    s.nodes.append(
        helper.make_node("If", [taken], outputs, name=outputs[0], then_branch=branches[0], else_branch=branches[1])
    )
    return outputs


def loop(s: Scope, node: Node, emit: EmitBlock) -> list[str]:
    """``while(carried, closed)``: the test runs once before, and again at the end of each turn."""
    carried, closed = (operands_of(s, a) for a in node.args)
    test, body = node.regions
    bind(s, test, [*carried, *closed])
    start = _truth(s, emit(s, test)[0])
    inner = Scope(s.emission, s)
    turn, going = s.emission.fresh("turn"), s.emission.fresh("going")
    state = [s.emission.fresh("carried") for _ in carried]
    bind(inner, body, [*state, *closed])
    after = emit(inner, body)
    bind(inner, test, [*after, *closed])
    results = [_unique(inner, name) for name in (_truth(inner, emit(inner, test)[0]), *after)]
    types = [proto_type(v.type, shaped=False) for v in node.results]
    inputs = [
        helper.make_tensor_value_info(turn, TensorProto.INT64, []),
        helper.make_tensor_value_info(going, TensorProto.BOOL, []),
        *(helper.make_value_info(n, t) for n, t in zip(state, types, strict=True)),
    ]
    outputs = [
        helper.make_tensor_value_info(results[0], TensorProto.BOOL, []),
        *(helper.make_value_info(n, t) for n, t in zip(results[1:], types, strict=True)),
    ]
    graph = helper.make_graph(inner.nodes, s.emission.fresh("body"), inputs, outputs)
    made = [s.emission.fresh("Loop") for _ in node.results]
    s.nodes.append(helper.make_node("Loop", ["", start, *carried], made, name=made[0], body=graph))
    return made


def _truth(s: Scope, name: str) -> str:
    return s.op("Reshape", name, s.ints())


def _unique(s: Scope, name: str) -> str:
    """A result of a subgraph under a name that nothing else has."""
    result = s.emission.fresh("result")
    s.nodes.append(helper.make_node("Identity", [name], [result], name=result))
    return result
