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
from backends.segments.schedule import Branch, Literal_, Loop, Run, Schedule, Side, Step
from backends.segments.sizes import is_size, plain_sizes, size_node
from ir import (
    COND,
    RETURN,
    WHILE,
    Arg,
    Block,
    DimRange,
    Graph,
    Node,
    Output,
    ScalarType,
    TensorType,
    Value,
    map_values,
    op,
    symbols_of,
)
from ir.errors import UnsupportedError
from ir.text import name_values

_SAME = frozenset({"aten.clone.default", "aten.alias.default", "aten.detach.default", "aten.contiguous.default"})
_KINDS = {"int": torch.int64, "float": torch.float64, "bool": torch.bool}


@dataclass(frozen=True, slots=True)
class Cut:
    """What a cut gives: graphs without regions, and the program that runs them."""

    segments: tuple[Graph, ...]
    schedule: Schedule


@dataclass(frozen=True, slots=True)
class _Held:
    """The host holds the value under a name."""

    name: str


def has_regions(graph: Graph) -> bool:
    """Whether there is anything to cut."""
    return any(node.regions for node in graph)


def cut(graph: Graph) -> Cut:
    """The segments of a graph.

    Raises:
        UnsupportedError: the graph returns what no tensor can hold, or a region operator is not known here.
    """
    return _Cutter(graph).whole()


class _Cutter:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._names = name_values(graph)
        self._known: dict[Value, _Held | Value] = {}  # a param is known as itself, the param of the whole graph
        self._weights: dict[str, str] = {}
        self._sources: dict[str, tuple[Value, int]] = {}
        self._segments: list[Graph] = []
        for value, spec in graph.inputs.items():
            self._known[value] = value if spec.kind == "param" else _Held(self._names[value])
            if spec.kind != "param":
                for name, axis in plain_sizes(value.tensor).items():
                    self._sources.setdefault(name, (value, axis))
        self._dims = frozenset(self._sources)

    def whole(self) -> Cut:
        graph = self._graph
        inputs = {spec.name: self._names[v] for v, spec in graph.inputs.items() if spec.kind != "param"}
        steps, _ = self._block(graph.body, [isinstance(a, Value) for a in graph.body.returned.args])
        outputs: dict[str, str | Literal_] = {}
        for output, arg in zip(graph.outputs, graph.body.returned.args, strict=True):
            key = f"state:{output.name}" if output.kind == "state" else output.name
            if isinstance(arg, Value):
                outputs[key] = self._name(arg)
            elif arg is None or isinstance(arg, (bool, int, float)):
                outputs[key] = arg
            else:
                raise UnsupportedError(f"output {output.name!r} is {arg!r}, which is no tensor")
        kept = [v for v in outputs.values() if isinstance(v, str)]
        made = with_drops(tuple(steps), kept, [*inputs.values(), *self._weights])
        return Cut(tuple(self._segments), Schedule(len(self._segments), inputs, outputs, made, self._weights))

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
                steps.append(self._branch(node) if node.op is COND else self._loop(node))
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
            pairs = [(o, a) for region in node.regions for o, a in zip(_many(node.args[1]), region.args[count:])]
            held = [v for v, a in zip(_many(node.args[0]), node.regions[1].args) if not self._is_size(a)]
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
            inner = (a for a, hold in zip(region.args, holds) if hold)
            self._known.update(zip(inner, map(_Held, names), strict=True))
            self._bind(region.args[len(carried) :], _many(node.args[1]))
        sides = []
        for region, kept in ((test, [True]), (body, holds)):
            steps, results = self._block(region, kept)
            sides.append(Side(tuple(steps), tuple(results)))
        return Loop(names, start, sides[0], sides[1])

    def _bind(self, inner: Sequence[Value], outer: Sequence[Value]) -> None:
        """Let arguments of a region stand for what they are outside."""
        for argument, value in zip(inner, outer, strict=True):
            if argument.uses and not self._is_size(argument):
                self._known[argument] = self._known[value]

    def _hold(self, values: Iterable[Value]) -> tuple[str, ...]:
        made = []
        for value in values:
            self._known[value] = _Held(self._names[value])
            made.append(self._names[value])
        return tuple(made)

    def _name(self, value: Value) -> str:
        known = self._known[value]
        if isinstance(known, _Held):
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
        exports = list(dict.fromkeys(r for r in roots.values() if r not in self._known))
        steps: list[Step] = []
        if exports:
            needed = _needed(chunk, exports)
            segment = _Segment(self._graph, len(self._segments), self._known, self._sources, self._names)
            made = segment.build(needed, exports)
            steps.append(Run(len(self._segments), *made))
            self._segments.append(segment.graph)
            self._hold(exports)
        self._known.update({value: self._known[root] for value, root in roots.items()})
        return steps


class _Segment:
    """One straight-line graph while it is written."""

    def __init__(
        self,
        whole: Graph,
        number: int,
        known: dict[Value, _Held | Value],
        sources: dict[str, tuple[Value, int]],
        names: dict[Value, str],
    ) -> None:
        self.graph = Graph(f"{whole.name}.{number}")
        self.graph.typer = whole.typer  # what was derived stays derived
        self._whole, self._known, self._sources, self._names = whole, known, sources, names
        self._table: dict[Value, Value] = {}
        self._ports: dict[str, Value] = {}
        self._params: dict[Value, Value] = {}
        self._sizes: dict[object, Arg] = {}

    def build(self, nodes: Sequence[Node], exports: Sequence[Value]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Write the nodes; the names of what goes in and what comes out."""
        for node in nodes:  # tensors first: sizes are then read from what goes in anyway
            for value in node.operands:
                if value in self._known and isinstance(value.type, TensorType):
                    self._table[value] = self._tensor(value)
        for node in nodes:
            args = tuple(map_values(a, self._read) for a in node.args)
            kwargs = {k: map_values(a, self._read) for k, a in node.kwargs.items()}
            types = [v.type for v in node.results]
            made = self.graph.insert(
                node.op, *args, origin=node.origin, types=types, hints=node.hints, kwargs=kwargs
            )
            for mine, value in zip(made.results, node.results, strict=True):
                mine.name = value.name
                self._table[value] = mine
        results = [self._result(v) for v in exports]
        for name in sorted(self._open_sizes()):
            self._source(name)
        outputs = tuple(self._names[v] for v in exports)
        self.graph.returns(*results, outputs=[Output("output", name) for name in outputs])
        self._declare_dims()
        return tuple(self._ports), outputs

    def _read(self, value: Value) -> Arg:
        if value in self._table:
            return self._table[value]
        if isinstance(value.type, TensorType):
            self._table[value] = self._tensor(value)
            return self._table[value]
        assert isinstance(value.type, ScalarType)
        known = self._known.get(value)
        if isinstance(known, _Held):
            port = self._port(known.name, TensorType(_KINDS[value.type.kind], ()))
            self._table[value] = self.graph.insert(op("aten.item.default"), port, types=(value.type,)).result
            return self._table[value]
        assert value.type.expr is not None
        if value.type.expr not in self._sizes:
            self._sizes[value.type.expr] = size_node(self.graph, value.type.expr, self._source)
        return self._sizes[value.type.expr]

    def _tensor(self, value: Value) -> Value:
        known = self._known[value]
        if isinstance(known, _Held):
            return self._port(known.name, value.tensor)
        if known not in self._params:
            name = self._whole.inputs[known].name
            self._params[known] = self.graph.add_input("param", name, known.type, known.name)
            self.graph.weights.add(name, self._whole.weights[name])
        return self._params[known]

    def _port(self, name: str, type_: TensorType) -> Value:
        if name not in self._ports:
            self._ports[name] = self.graph.add_input("input", name, type_)
        return self._ports[name]

    def _source(self, name: str) -> tuple[Value, int]:
        """Where a size can be read: from an input of the segment, else from an input of the whole model."""
        for port in self._ports.values():
            if name in (found := plain_sizes(port.tensor)):
                return port, found[name]
        value, axis = self._sources[name]
        return self._port(self._names[value], value.tensor), axis

    def _open_sizes(self) -> set[str]:
        """Symbols in the segment that no input of it has as a dimension of its own, but one of the model has."""
        named = {n for node in self.graph for v in node.results for n in _symbols(v)}
        return {n for n in named if n in self._sources} - {
            n for port in self._ports.values() for n in plain_sizes(port.tensor)
        }

    def _declare_dims(self) -> None:
        """The model's dims that occur here; a size made from data is one more dim of what it comes in with."""
        values = [*self._ports.values(), *(v for node in self.graph for v in node.results)]
        found = dict.fromkeys(n for v in values for n in sorted(_symbols(v)))
        within = {n for port in self._ports.values() for n in _symbols(port)}
        for name, bounds in self._whole.dims.items():
            if name in found:
                self.graph.dims[name] = bounds
        for name in found:
            if name in within and name not in self.graph.dims:
                self.graph.dims[name] = DimRange()

    def _result(self, value: Value) -> Arg:
        made = self._read(value)
        if isinstance(value.type, TensorType):
            return made
        assert isinstance(value.type, ScalarType)
        dtype = _KINDS[value.type.kind]
        types = (TensorType(dtype, ()),)
        return self.graph.insert(op("aten.scalar_tensor.default"), made, kwargs={"dtype": dtype}, types=types).result


def _many(arg: Arg) -> tuple[Value, ...]:
    assert isinstance(arg, tuple)
    return arg  # type: ignore[return-value]  # verified: operands of a region operator are values


def _symbols(value: Value) -> set[str]:
    type_ = value.type
    if isinstance(type_, TensorType):
        return {n for d in type_.shape for n in symbols_of(d)}
    return set(symbols_of(type_.expr)) if isinstance(type_, ScalarType) and type_.expr is not None else set()


def _root(value: Value, inside: set[Node]) -> Value:
    """The value that another one is only a name for."""
    node = value.producer
    while node is not None and node in inside and node.op.name in _SAME and not node.kwargs and len(node.args) == 1:
        value = node.operands[0]
        node = value.producer
    return value


def _needed(chunk: Sequence[Node], exports: Sequence[Value]) -> list[Node]:
    """Nodes that the exports depend on, and those with effects (assertions)."""
    inside = set(chunk)
    needed: set[Node] = set()
    stack = [v.producer for v in exports] + [n for n in chunk if n.op.effects]
    while stack:
        node = stack.pop()
        if node is not None and node in inside and node not in needed:
            needed.add(node)
            stack += [v.producer for v in node.operands]
    return [node for node in chunk if node in needed]
