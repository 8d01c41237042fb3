"""Cut a graph at its region operators, nested ones too, into straight-line graphs and a schedule that joins them.

Values cross a cut as tensors by name. Weights are read by the segments themselves. A size that is a function of the
model's dims is made again where it is read, from the shape of an input; any other number crosses as a 0-d tensor.
What only gives a value another name (``clone``, ``detach``) costs no segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from backends.segments.drops import with_drops
from backends.segments.schedule import MAX_CONSTANT, Branch, Constant, Literal_, Loop, Rows, Run, Schedule, Side, Step
from backends.segments.segment import Held, Segment
from backends.segments.sizes import is_size, plain_sizes
from ir import (
    COND,
    RETURN,
    ROWS,
    WHILE,
    Arg,
    Block,
    DimRange,
    Graph,
    Node,
    TensorType,
    Value,
    interpret,
)
from ir.dims import upper_bound
from ir.errors import UnsupportedError
from ir.rows import groups, rows_symbol
from ir.rowwise import mixing
from ir.text import name_values
from ir.types import DTYPE_NAMES

_SAME = frozenset({"aten.clone.default", "aten.alias.default", "aten.detach.default", "aten.contiguous.default"})


@dataclass(frozen=True, slots=True)
class Cut:
    """What a cut gives: graphs without regions, and the program that runs them."""

    segments: tuple[Graph, ...]
    schedule: Schedule


def has_regions(graph: Graph) -> bool:
    """Whether there is anything to cut."""
    return any(node.regions for node in graph)


def cut(graph: Graph, bucketed: bool = False) -> Cut:
    """The segments of a graph; ``bucketed``: regions of ``rows`` run in the sizes of ``backends.buckets``.

    Raises:
        UnsupportedError: the graph returns what no tensor can hold, or a region operator is not known here.
    """
    return _Cutter(graph, bucketed).whole()


class _Cutter:
    def __init__(self, graph: Graph, bucketed: bool) -> None:
        self._graph, self._bucketed = graph, bucketed
        self._names = name_values(graph)
        self._known: dict[Value, Held | Value] = {}  # a param is known as itself, the param of the whole graph
        self._weights: dict[str, str] = {}
        self._constants: dict[str, Constant] = {}
        self._sources: dict[str, tuple[Value, int]] = {}
        self._segments: list[Graph] = []
        for value, spec in graph.inputs.items():
            self._known[value] = value if spec.kind == "param" else Held(self._names[value])
            if spec.kind != "param":
                for name, axis in plain_sizes(value.tensor).items():
                    self._sources.setdefault(name, (value, axis))
        self._dims = frozenset(self._sources)
        self._bounds: dict[str, DimRange] = {}  # of numbers of live rows

    def whole(self) -> Cut:
        graph = self._graph
        inputs = {spec.name: self._names[v] for v, spec in graph.inputs.items() if spec.kind != "param"}
        steps, _ = self._block(graph.body, [isinstance(a, Value) for a in graph.body.returned.args])
        outputs: dict[str, str | Literal_] = {}
        for output, arg in zip(graph.outputs, graph.body.returned.args, strict=True):
            key = output.key
            if isinstance(arg, Value):
                outputs[key] = self._name(arg)
            elif arg is None or isinstance(arg, (bool, int, float)):
                outputs[key] = arg
            else:
                raise UnsupportedError(f"output {output.name!r} is {arg!r}, which is no tensor")
        kept = [v for v in outputs.values() if isinstance(v, str)]
        given = [*inputs.values(), *self._weights, *self._constants]
        made = with_drops(tuple(steps), kept, given)
        count = len(self._segments)
        return Cut(tuple(self._segments), Schedule(count, inputs, outputs, made, self._weights, self._constants))

    # --- blocks --------------------------------------------------------------------------------

    def _block(self, block: Block, holds: Sequence[bool]) -> tuple[list[Step], list[str]]:
        """Steps of a block, and names of those results that are to be held."""
        steps: list[Step] = []
        chunk: list[Node] = []
        for node in block:
            if node.op is RETURN:
                wanted = [a for a, hold in zip(node.args, holds, strict=True) if hold and isinstance(a, Value)]
                steps += self._flush(chunk, wanted)
                return steps, [self._name(v) for v in wanted]
            if node.regions:
                steps += self._flush(chunk, self._must_hold(node))
                make = self._branch if node.op is COND else self._loop if node.op is WHILE else self._rows
                steps.append(make(node))
                chunk = []
            else:
                chunk.append(node)
        raise AssertionError("verified blocks end with return")

    def _must_hold(self, node: Node) -> list[Value]:
        """Operands of a region operator that the host itself reads, or that change from turn to turn."""
        if node.op is COND:
            pairs = [(o, a) for region in node.regions for o, a in zip(_many(node.args[1]), region.args, strict=True)]
            held = [node.operands[0]]
        elif node.op is WHILE:
            count = len(_many(node.args[0]))
            pairs = [
                (o, a) for region in node.regions for o, a in zip(_many(node.args[1]), region.args[count:], strict=True)
            ]
            held = [
                v
                for v, a in zip(_many(node.args[0]), node.regions[1].args[:count], strict=True)
                if not self._is_size(a)
            ]
        elif node.op is ROWS:
            live, carried, beside, closed = groups(node)
            count = len(carried) + len(beside)
            pairs = list(zip(closed, node.regions[0].args[count:], strict=True))
            held = [live, *carried, *beside]
        else:
            raise UnsupportedError(f"{node.op.name} cannot be cut into segments", where=str(node.origin))
        # a size of a region that is no function of the dims, although the operand is
        return held + [o for o, a in pairs if a.uses and self._is_size(o) and not self._is_size(a)]

    def _branch(self, node: Node) -> Branch:
        sides = []
        holds = [not self._is_size(v) for v in node.results]
        for region in node.regions:
            self._bind(region.args, _many(node.args[1]))
            steps, names = self._block(region, holds)
            sides.append(Side(tuple(steps), tuple(names)))
        results = self._hold(v for v, hold in zip(node.results, holds, strict=True) if hold)
        return Branch(self._name(node.operands[0]), sides[0], sides[1], results)

    def _loop(self, node: Node) -> Loop:
        test, body = node.regions
        carried = _many(node.args[0])
        holds = [not self._is_size(a) for a in body.args[: len(carried)]]
        start = tuple(self._name(v) for v, hold in zip(carried, holds, strict=True) if hold)
        names = self._hold(v for v, hold in zip(node.results, holds, strict=True) if hold)
        for region in node.regions:
            inner = (a for a, hold in zip(region.args[: len(carried)], holds, strict=True) if hold)
            self._known.update(zip(inner, map(Held, names), strict=True))
            self._bind(region.args[len(carried) :], _many(node.args[1]))
        sides = []
        for region, kept in ((test, [True]), (body, holds)):
            steps, results = self._block(region, kept)
            sides.append(Side(tuple(steps), tuple(results)))
        return Loop(names, start, sides[0], sides[1])

    def _rows(self, node: Node) -> Rows:
        live, carried, beside, closed = groups(node)
        region = node.regions[0]
        given = (*carried, *beside)
        self._bounds[rows_symbol(node)] = DimRange(1, upper_bound(live.tensor.shape[0], self._graph.dims))
        inner = self._hold(region.args[: len(given)])
        self._bind(region.args[len(given) :], closed)
        steps, results = self._block(region, [True] * len(carried))
        side = Side(tuple(steps), tuple(results))
        padded = self._bucketed and not mixing(node)  # rows of padding may not touch the others
        return Rows(self._name(live), tuple(map(self._name, given)), inner, side, self._hold(node.results), padded)

    def _bind(self, inner: Sequence[Value], outer: Sequence[Value]) -> None:
        """Let arguments of a region stand for what they are outside."""
        for argument, value in zip(inner, outer, strict=True):
            if argument.uses and not self._is_size(argument):
                self._known[argument] = self._known[value]

    def _hold(self, values: Iterable[Value]) -> tuple[str, ...]:
        made = []
        for value in values:
            self._known[value] = Held(self._names[value])
            made.append(self._names[value])
        return tuple(made)

    def _name(self, value: Value) -> str:
        known = self._known[value]
        if isinstance(known, Held):
            return known.name
        self._weights[self._names[known]] = self._graph.inputs[known].name
        return self._names[known]

    def _is_size(self, value: Value) -> bool:
        return is_size(value, self._dims)

    # --- straight lines ------------------------------------------------------------------------

    def _flush(self, chunk: list[Node], must: Sequence[Value]) -> list[Step]:
        """A segment of some nodes that gives what later steps need, if that is anything."""
        inside = set(chunk)
        wanted = dict.fromkeys(v for v in must if v not in self._known)
        for node in chunk:
            for value in node.results:
                if not self._is_size(value) and any(user not in inside for user in value.uses):
                    wanted[value] = None
        roots = {value: _root(value, inside) for value in wanted}
        exports = [r for r in dict.fromkeys(roots.values()) if r not in self._known and not self._fold(chunk, r)]
        steps: list[Step] = []
        if exports:
            needed = _needed(chunk, exports)
            segment = Segment(self._graph, len(self._segments), self._known, self._sources, self._names, self._bounds)
            made = segment.build(needed, exports)
            steps.append(Run(len(self._segments), *made))
            self._segments.append(segment.graph)
            self._hold(exports)
        self._known.update({value: self._known[root] for value, root in roots.items()})
        return steps

    def _fold(self, chunk: Sequence[Node], value: Value) -> bool:
        """Work out a small value that depends on nothing; whether that was possible."""
        type_, nodes = value.type, _needed(chunk, [value], effects=False)
        if not isinstance(type_, TensorType) or any(node.op.random for node in nodes):
            return False
        made = {v for node in nodes for v in node.results}
        size = type_.numel
        if not isinstance(size, int) or size > MAX_CONSTANT or any(v not in made for n in nodes for v in n.operands):
            return False
        segment = Segment(self._graph, 0, self._known, self._sources, self._names, self._bounds)
        segment.build(nodes, [value])
        tensor = interpret(segment.graph, {})[self._names[value]]
        if not (tensor.isfinite() if tensor.is_floating_point() else torch.ones(())).all() or tensor.is_complex():
            return False
        dtype = DTYPE_NAMES[tensor.dtype]
        self._constants[self._names[value]] = Constant(dtype, tuple(tensor.shape), tuple(tensor.flatten().tolist()))
        self._hold([value])
        return True


def _many(arg: Arg) -> tuple[Value, ...]:
    assert isinstance(arg, tuple)
    return arg  # verified: operands of a region operator are values


def _root(value: Value, inside: set[Node]) -> Value:
    """The value that another one is only a name for."""
    node = value.producer
    while node is not None and node in inside and node.op.name in _SAME and not node.kwargs and len(node.args) == 1:
        value = node.operands[0]
        node = value.producer
    return value


def _needed(chunk: Sequence[Node], exports: Sequence[Value], effects: bool = True) -> list[Node]:
    """Nodes that the exports depend on, and on request those with effects (assertions)."""
    inside = set(chunk)
    needed: set[Node] = set()
    stack = [v.producer for v in exports] + [n for n in chunk if n.op.effects and effects]
    while stack:
        node = stack.pop()
        if node is not None and node in inside and node not in needed:
            needed.add(node)
            stack += [v.producer for v in node.operands]
    return [node for node in chunk if node in needed]
