"""Is a graph what it claims to be? One small check per ``Fact``; a fault shows the IR around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum

import torch

from ir.core import Block, Graph, Node, Value
from ir.dims import is_data_symbol, symbols_of
from ir.errors import IRError
from ir.ops import COND, REGIONS, RETURN, ROWS, WHILE
from ir.rows import fault as rows_fault
from ir.text import show
from ir.types import ScalarType, TensorType, Type


class Fact(Enum):
    """Something true of a whole graph until a pass breaks it."""

    WELL_FORMED = "values are defined once, before their uses; use lists are true; regions fit"
    TYPED = "each result has the type that torch derives from the operands"
    CANONICAL_VIEWS = "views are spelled reshape and permute"
    NO_DEAD_NODES = "every pure node reaches the return"


def verify(graph: Graph, *facts: Fact) -> None:
    """Check facts of a graph, ``WELL_FORMED`` and ``TYPED`` when none is named.

    Raises:
        IRError: with the faulty node marked in ten lines of IR around it.
    """
    for fact in facts or (Fact.WELL_FORMED, Fact.TYPED):
        _CHECKS[fact](graph)


def _fail(graph: Graph, node: Node | None, what: str) -> IRError:
    context = ""
    if node is not None and node.block is not None:
        context = "\n" + show(graph, mark=node, around=5)
    return IRError(what + context, where=str(node.origin) if node else "")


def _well_formed(graph: Graph) -> None:
    if list(graph.inputs) != graph.body.args:
        raise IRError("graph.inputs and the arguments of the body differ")
    for spec in graph.inputs.values():
        if spec.kind not in ("input", "state", "param"):
            raise IRError(f"unknown kind of input: {spec.kind!r}")
    states = {name for name, _ in graph.arguments("state")}
    users: dict[Value, set[Node]] = {}
    _block_formed(graph, graph.body, users)
    arguments = [v for block in graph.blocks() for v in block.args]
    for value in [*arguments, *(v for n in graph.walk() for v in n.results)]:
        if set(value.uses) != users.get(value, set()):
            raise _fail(graph, value.producer, f"the use list of %{value.name} is not true")
    if len(graph.outputs) != len(graph.body.returned.args):
        raise _fail(graph, graph.body.returned, "one Output per returned value")
    for output in graph.outputs:
        if output.kind not in ("output", "state", "trace"):
            raise _fail(graph, graph.body.returned, f"unknown kind of output: {output.kind!r}")
        if output.kind == "state" and output.name not in states:
            raise _fail(graph, graph.body.returned, f"returns state {output.name!r}, which is no input")


def _block_formed(graph: Graph, block: Block, users: dict[Value, set[Node]]) -> None:
    defined = set(block.args)
    for node in block:
        for value in node.operands:
            if value not in defined:
                raise _fail(graph, node, f"%{value.name} is used before, or outside of where, it is defined")
            users.setdefault(value, set()).add(node)
        if node.block is not block:
            raise _fail(graph, node, "the node stands in another block than it says")
        for value in node.results:
            if value.producer is not node:
                raise _fail(graph, node, f"%{value.name} names another producer")
            defined.add(value)
        if node.op is RETURN and node is not block.last:
            raise _fail(graph, node, "return is not last")
        for region in node.regions:
            _block_formed(graph, region, users)
        _regions_fit(graph, node)
    block.returned  # noqa: B018  (raises when the block does not end with return)


def _regions_fit(graph: Graph, node: Node) -> None:
    count = REGIONS.get(node.op.name, 0)
    if len(node.regions) != count:
        raise _fail(graph, node, f"{node.op.name} has {('no regions', 'one region', 'two regions')[count]}")
    if not count:
        return
    if node.op is ROWS:
        if what := rows_fault(node):
            raise _fail(graph, node, what)
        return
    if node.op is COND and not (isinstance(node.args[0], Value) and _is_flag(node.args[0].type)):
        raise _fail(graph, node, "the predicate of cond is one boolean")
    operands = [v.type for v in node.operands[1:]] if node.op is COND else [v.type for v in node.operands]
    results = [v.type for v in node.results]
    for index, region in enumerate(node.regions):
        if not _same_types([v.type for v in region.args], operands):
            raise _fail(graph, node, f"region {index} does not take the operands of {node.op.name}")
        got = [v.type for v in region.returned.operands]
        if node.op is WHILE and index == 0:
            if len(got) != 1 or not _is_flag(got[0]):
                raise _fail(graph, node, "the test of while returns one boolean")
        elif not _same_types(got, results):
            raise _fail(graph, node, f"region {index} returns {got}, {node.op.name} gives {results}")


def _is_flag(type_: Type) -> bool:
    return type_ == ScalarType("bool") or (
        isinstance(type_, TensorType) and type_.dtype is torch.bool and type_.numel == 1
    )


def _typed(graph: Graph) -> None:
    for node in graph.walk():
        if node.op is RETURN:
            continue
        try:
            want = graph.typer.infer(node)
        except IRError as error:
            raise _fail(graph, node, error.what) from error
        got = [v.type for v in node.results]
        if not _same_types(list(want), got):
            raise _fail(graph, node, f"{node.op.name} gives {list(want)}, the node says {got}")


def _same_types(want: list[Type], got: list[Type]) -> bool:
    return len(want) == len(got) and all(map(same_type, want, got))


def same_type(a: Type, b: Type) -> bool:
    """Equal up to sizes that depend on the data, whose symbols have no name of their own."""
    if a == b:
        return True
    if isinstance(a, ScalarType) and isinstance(b, ScalarType):
        return a.kind == b.kind and (a.expr is None or b.expr is None or _data(a) or _data(b))
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        return (
            a.dtype == b.dtype
            and len(a.shape) == len(b.shape)
            and all(
                x == y or any(map(is_data_symbol, symbols_of(x) | symbols_of(y)))
                for x, y in zip(a.shape, b.shape, strict=True)
            )
        )
    return False


def _data(scalar: ScalarType) -> bool:
    return scalar.expr is not None and any(map(is_data_symbol, symbols_of(scalar.expr)))


def _no_dead_nodes(graph: Graph) -> None:
    for node in graph.walk():
        if node.pure and not any(v.uses for v in node.results):
            raise _fail(graph, node, f"{node.op.name} is dead")


_OTHER_SPELLINGS = {
    "aten.view.default": "aten.reshape.default",
    "aten._unsafe_view.default": "aten.reshape.default",
    "aten.transpose.int": "aten.permute.default",
    "aten.t.default": "aten.permute.default",
}


def _canonical_views(graph: Graph) -> None:
    for node in graph.walk():
        if node.op.name in _OTHER_SPELLINGS:
            raise _fail(graph, node, f"{node.op.name} should be spelled {_OTHER_SPELLINGS[node.op.name]}")


_CHECKS: Mapping[Fact, Callable[[Graph], None]] = {
    Fact.WELL_FORMED: _well_formed,
    Fact.TYPED: _typed,
    Fact.CANONICAL_VIEWS: _canonical_views,
    Fact.NO_DEAD_NODES: _no_dead_nodes,
}
