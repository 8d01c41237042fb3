"""One straight-line graph: nodes of a block, with everything they read as inputs and weights of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from backends.segments.sizes import plain_sizes, size_node
from ir import Arg, DimRange, Graph, Node, Output, ScalarType, TensorType, Value, map_values, op, symbols_of

_KINDS = {"int": torch.int64, "float": torch.float64, "bool": torch.bool}


@dataclass(frozen=True, slots=True)
class Held:
    """The host holds the value under a name."""

    name: str


class Segment:
    """One straight-line graph while it is written."""

    def __init__(
        self,
        whole: Graph,
        number: int,
        known: Mapping[Value, Held | Value],
        sources: Mapping[str, tuple[Value, int]],
        names: Mapping[Value, str],
        bounds: Mapping[str, DimRange],
    ) -> None:
        """Begin one.

        Args:
            whole: the graph that is cut.
            number: of the segment.
            known: what crosses a cut: held by the host, or a param of ``whole``.
            sources: input of ``whole`` and axis where each of its dims can be read.
            names: a unique name of every value.
            bounds: of sizes that depend on the data, where they are known.
        """
        self.graph = Graph(f"{whole.name}.{number}")
        self.graph.typer = whole.typer  # what was derived stays derived
        self._whole, self._known, self._sources, self._names, self._bounds = whole, known, sources, names, bounds
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
            made = self.graph.insert(node.op, *args, origin=node.origin, types=types, hints=node.hints, kwargs=kwargs)
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
        if isinstance(known, Held):
            port = self._port(known.name, TensorType(_KINDS[value.type.kind], ()))
            self._table[value] = self.graph.insert(op("aten.item.default"), port, types=(value.type,)).result
            return self._table[value]
        assert value.type.expr is not None
        if value.type.expr not in self._sizes:
            self._sizes[value.type.expr] = size_node(self.graph, value.type.expr, self._source)
        return self._sizes[value.type.expr]

    def _tensor(self, value: Value) -> Value:
        known = self._known[value]
        if isinstance(known, Held):
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
                self.graph.dims[name] = self._bounds.get(name, DimRange())

    def _result(self, value: Value) -> Arg:
        made = self._read(value)
        if isinstance(value.type, TensorType):
            return made
        assert isinstance(value.type, ScalarType)
        dtype = _KINDS[value.type.kind]
        types = (TensorType(dtype, ()),)
        return self.graph.insert(op("aten.scalar_tensor.default"), made, kwargs={"dtype": dtype}, types=types).result


def _symbols(value: Value) -> set[str]:
    type_ = value.type
    if isinstance(type_, TensorType):
        return {n for d in type_.shape for n in symbols_of(d)}
    return set(symbols_of(type_.expr)) if isinstance(type_, ScalarType) and type_.expr is not None else set()
