"""One ONNX model from one graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx
import torch
from onnx import GraphProto, helper

from backends.arguments import IGNORED, Refused, positional
from backends.base import WEIGHTS_FILE, Unsupported
from backends.onnx_emit.decompose import decomposed
from backends.onnx_emit.flow import conditional, loop, proto_type
from backends.onnx_emit.kernels import type_fault
from backends.onnx_emit.pointwise import Emitter
from backends.onnx_emit.scope import MICROSOFT, Emission, Scope
from backends.onnx_emit.table import EMITTERS
from backends.payload import RENAMED
from ir import COND, WHILE, Arg, Block, Graph, Node, TensorType, Value
from ir.errors import UnsupportedError
from ir.rows import lowered
from ir.weights import layout

OPSET = 20
_NUMBER = TensorType(torch.float32, ())
_KEPT = {bool: torch.bool, int: torch.int64, float: torch.float64}


def emit(
    graph: Graph,
    spans: Mapping[str, tuple[int, int]],
    flavor: str = "portable",
    weights_file: str = WEIGHTS_FILE,
) -> onnx.ModelProto:
    """The ONNX model of a graph.

    Args:
        graph: any verified graph.
        spans: ``(offset, length)`` of each weight in the weights file, as ``ir.weights.save`` gives them.
        flavor: ``onnxruntime``, ``openvino`` or ``portable``: whose forms to prefer.
        weights_file: name of the weights file, beside the model.

    Raises:
        UnsupportedError: lists everything that has no ONNX form.
    """
    model, faults = _emit(graph, spans, flavor, weights_file)
    if faults:
        listing = "\n".join(f"  - {fault}" for fault in faults)
        raise UnsupportedError(f"{len(faults)} operator(s) have no ONNX form:\n{listing}")
    return model


def unsupported(graph: Graph, flavor: str = "portable") -> list[Unsupported]:
    """Everything in a graph that has no ONNX form; the first of many equal ones is enough to act, but all come."""
    return _emit(graph, layout(graph.weights)[1], flavor, WEIGHTS_FILE)[1]


def _emit(
    graph: Graph, spans: Mapping[str, tuple[int, int]], flavor: str, weights_file: str
) -> tuple[onnx.ModelProto, list[Unsupported]]:
    emission = Emission(lowered(graph, "compacted"), flavor, spans, weights_file)
    writer = Writer(emission)
    return writer.model(), writer.faults


class Writer:
    """Walks a graph and lets each operator emit itself; ``faults`` are those that cannot.

    A backend with primitives of its own overrides ``form``, ``fault`` and ``region``, and brings its own ``Scope``.
    """

    noun = "ONNX"

    def __init__(self, emission: Emission) -> None:
        self._emission = emission
        self._graph = emission.graph
        self.faults: list[Unsupported] = []
        self._inside = False

    def form(self, node: Node) -> Emitter | None:
        """What emits an operator; ``None`` when only its parts may have a form."""
        return EMITTERS.get(node.op.name)

    def fault(self, scope: Scope, node: Node) -> str:
        """Why the engine cannot run a node that has a form; empty when it can."""
        return type_fault(scope.flavor, node)

    def region(self, scope: Scope, node: Node) -> list[str]:
        """Emit a node that holds regions."""
        return (conditional if node.op is COND else loop)(scope, node, self.block)

    def model(self) -> onnx.ModelProto:
        """The whole model."""
        emission, graph = self._emission, self._graph
        scope = Scope(emission)
        inputs = self._inputs(scope)
        results = self.block(scope, graph.body)
        outputs, renamed = [], {}
        for output, name, value in zip(graph.outputs, results, graph.body.returned.args, strict=True):
            final = output.key
            if final in emission.taken or final.startswith(RENAMED):
                final = emission.fresh(RENAMED + final)
            emission.taken.add(final)
            made = name in renamed or name in {i.name for i in inputs} or scope.is_constant(name)
            if made:
                scope.nodes.append(helper.make_node("Identity", [name], [final], name=final))
            else:
                renamed[name] = final
            outputs.append(helper.make_value_info(final, self._output_type(value)))
        scope.nodes = _needed(scope.nodes, {o.name for o in outputs} | set(renamed))
        for node in scope.nodes:
            _rename(node, renamed)
        made_graph = helper.make_graph(
            scope.nodes, graph.name or "model", inputs, outputs, self._read_initializers(scope.nodes)
        )
        domains = [helper.make_opsetid("", OPSET)]
        if any(node.domain == MICROSOFT for node in _walk(scope.nodes)):
            domains.append(helper.make_opsetid(MICROSOFT, 1))
        model = helper.make_model(made_graph, opset_imports=domains, ir_version=10, producer_name="penstock")
        return model

    def _inputs(self, scope: Scope) -> list[Any]:
        emission, inputs = self._emission, []
        for value, spec in self._graph.inputs.items():
            if spec.kind == "param":
                continue
            try:
                type_ = proto_type(value.type)
            except Refused as refused:
                self.faults.append(Unsupported("input", spec.name, str(refused)))
                continue
            emission.names[value] = emission.fresh(spec.name)
            inputs.append(helper.make_value_info(spec.name, type_))
            for axis, dim in enumerate(value.tensor.shape):
                if not isinstance(dim, int) and dim.is_Symbol:
                    emission.sources.setdefault(dim.name, (spec.name, axis))
        for name, value in self._graph.arguments("param"):
            try:
                emission.names[value] = scope.weight(name, value.tensor)
            except Refused as refused:
                self.faults.append(Unsupported("param", name, str(refused)))
                emission.names[value] = name
        return inputs

    def _output_type(self, value: Arg) -> Any:
        try:
            return proto_type(value.type)  # type: ignore[union-attr]
        except Refused as refused:
            self.faults.append(Unsupported("output", "", str(refused)))
            return proto_type(_NUMBER)

    def _read_initializers(self, nodes: Iterable[Any]) -> list[Any]:
        read = {name for node in _walk(nodes) for name in node.input}
        return [tensor for name, tensor in self._emission.initializers.items() if name in read]

    def block(self, scope: Scope, block: Block) -> list[str]:
        """Emit the nodes of a block; names of what it returns."""
        *inner, last = block
        self.nodes(scope, inner)
        return [self.returned(scope, a) for a in last.args]

    def nodes(self, scope: Scope, nodes: Iterable[Node]) -> None:
        """Emit nodes one after the other."""
        for node in nodes:
            names = self._node(scope, node)
            for value, name in zip(node.results, names, strict=True):
                scope[value] = name

    def returned(self, scope: Scope, arg: Arg) -> str:
        """Name of what a block returns."""
        if isinstance(arg, Value):
            return scope[arg]
        if isinstance(arg, (bool, int, float)):
            return scope.tensor(arg, _KEPT[type(arg)])
        self.faults.append(Unsupported("return", "", f"returns {arg!r}"))
        return ""

    def _decomposed(self, scope: Scope, node: Node) -> list[str]:
        if self._inside:  # core operators are the end: what is left has parts no more
            raise Refused(f"no {self.noun} form is known; write it with other operators")
        before, self._inside = len(self.faults), True
        try:
            names = decomposed(scope, node, self.block)
        finally:
            self._inside = False
        if len(self.faults) > before:  # told of the node that the user wrote, not of its parts
            parts = ", ".join(sorted({fault.op for fault in self.faults[before:]}))
            del self.faults[before:]
            raise Refused(f"no {self.noun} form is known, nor of its parts {parts}")
        return names

    def _node(self, scope: Scope, node: Node) -> list[str]:
        count = len(node.results)
        if node.op.name in IGNORED:
            return [""] * count
        try:
            if node.op in (COND, WHILE):
                return self.region(scope, node)
            if why := self.fault(scope, node):
                raise Refused(why)
            form = self.form(node)
            if form is None:
                return self._decomposed(scope, node)
            made = form(scope, node, *positional(node))
        except Refused as refused:
            self.faults.append(Unsupported(node.op.name, str(node.origin), str(refused)))
            return [f"missing.{i}" for i in range(count)]
        return [made] if isinstance(made, str) else list(made)


def _walk(nodes: Iterable[Any]) -> Iterable[Any]:
    """Nodes, also those of branches and bodies."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _walk(attribute.g.node)


def _needed(nodes: list[Any], wanted: set[str]) -> list[Any]:
    """Nodes that something reads; op functions may leave others behind."""
    kept = []
    for node in reversed(nodes):
        if any(name in wanted for name in node.output):
            kept.append(node)
            for inner in _walk([node]):
                wanted.update(inner.input)
            wanted.update(o.name for a in node.attribute if a.HasField("g") for o in a.g.output)
    return kept[::-1]


def _rename(node: Any, names: Mapping[str, str]) -> None:
    for fields in (node.input, node.output):
        for index, name in enumerate(fields):
            if name in names:
                fields[index] = names[name]
    for attribute in node.attribute:
        if attribute.HasField("g"):
            graph: GraphProto = attribute.g
            for inner in graph.node:
                _rename(inner, names)
