"""One network from one graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backends.arguments import Refused
from backends.base import Device, Unsupported
from backends.onnx_emit.emit import Writer
from backends.onnx_emit.pointwise import Emitter
from backends.onnx_emit.scope import Scope
from backends.onnx_emit.table import EMITTERS
from backends.payload import RENAMED
from backends.tensorrt.flow import region
from backends.tensorrt.kinds import KINDS
from backends.tensorrt.legality import node_fault, type_fault
from backends.tensorrt.library import data_type, library, sentence, session
from backends.tensorrt.network import NOTHING, Network, NetworkScope
from backends.tensorrt.operators import OPERATORS
from backends.tensorrt.plan import Flow
from ir import Arg, Graph, Node, TensorType, Value
from ir.errors import UnsupportedError
from ir.rows import lowered

Profile = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class Emitted:
    """A network definition, and what the API does not give back of it.

    Attributes:
        inputs: names of the graph's inputs and states, in order.
        outputs: names in the network of the graph's outputs, in order.
    """

    network: Network
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def emit(graph: Graph, device: Device, package: str | None = None) -> Emitted:
    """The network of a graph.

    Args:
        graph: any verified graph.
        device: its capability decides which forms are legal.
        package: ``tensorrt_rtx`` or ``tensorrt``; the one installed when ``None``.

    Raises:
        UnsupportedError: lists everything that cannot be carried.
    """
    emitted, faults = emit_all(graph, device, package)
    if faults:
        listing = "\n".join(f"  - {fault}" for fault in faults)
        raise UnsupportedError(f"{len(faults)} operator(s) cannot be built for {device.name}:\n{listing}")
    return emitted


def emit_all(graph: Graph, device: Device, package: str | None = None) -> tuple[Emitted, list[Unsupported]]:
    """The network as far as it goes, and everything that cannot be carried."""
    graph = lowered(graph, "masked")  # compacted rows have shapes that the data decides
    trt = library(package)
    builder, log = session(package)
    log.take()
    flags = 0
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    definition = builder.create_network(flags)
    definition.name = graph.name or "model"  # the default counts networks, and the bytes with it
    network = Network(graph, "tensorrt", {}, "", device=device, trt=trt, definition=definition, log=log, kinds=KINDS)
    writer = _NetworkWriter(network, device)
    emitted = writer.emitted()
    errors, _ = log.take()
    if errors and not writer.faults:  # setters fail in the log only, and the engine would be built without
        writer.faults.append(Unsupported("network", "", sentence(errors)))
    return emitted, [fault for fault in writer.faults if not fault.reason.startswith(NOTHING)]


class _NetworkWriter(Writer):
    noun = "TensorRT"

    def __init__(self, network: Network, device: Device) -> None:
        super().__init__(network)
        self._network = network
        self._device = device

    def form(self, node: Node) -> Emitter | None:
        return OPERATORS.get(node.op.name) or EMITTERS.get(node.op.name)

    def fault(self, scope: Scope, node: Node) -> str:
        return node_fault(node, self._device, self._network.trt)

    def region(self, scope: Scope, node: Node) -> list[str]:
        assert isinstance(scope, NetworkScope)
        return region(scope, node, self)

    def emitted(self) -> Emitted:
        scope = NetworkScope(self._network)
        inputs = self._enter(scope)
        results = self.block(scope, self._graph.body)
        outputs = []
        for output, name, value in zip(self._graph.outputs, results, self._graph.body.returned.args, strict=True):
            final = output.key
            try:
                outputs.append(self._leave(scope, final, name, value))
            except Refused as refused:
                if not self.faults:  # otherwise it follows from those
                    self.faults.append(Unsupported("output", final, str(refused)))
        return Emitted(self._network, tuple(inputs), tuple(outputs))

    def _enter(self, scope: NetworkScope) -> list[str]:
        network, inputs = self._network, []
        for value, spec in self._graph.inputs.items():
            try:
                if spec.kind == "param":
                    network.names[value] = scope.weight(spec.name, value.tensor)
                    continue
                type_ = value.tensor
                if why := type_fault(type_.dtype, self._device, network.trt):
                    raise Refused(why)
                shape = [d if isinstance(d, int) else -1 for d in type_.shape]
                tensor = network.definition.add_input(spec.name, data_type(network.trt, type_.dtype), shape)
                for axis, dim in enumerate(type_.shape):
                    if not isinstance(dim, int) and dim.is_Symbol:
                        tensor.set_dimension_name(axis, dim.name)
                        network.sources.setdefault(dim.name, (spec.name, axis))
                network.taken.add(spec.name)
                network.entries.add(spec.name)
                scope.tensors[spec.name] = scope.check(tensor)
                network.names[value] = spec.name
                inputs.append(spec.name)
            except Refused as refused:
                self.faults.append(Unsupported(spec.kind, spec.name, str(refused)))
                network.names[value] = f"missing.{spec.name}"
        return inputs

    def _leave(self, scope: NetworkScope, final: str, name: str, value: Arg) -> str:
        if final in self._network.taken or final.startswith(RENAMED):
            final = self._network.fresh(RENAMED + final)
        self._network.taken.add(final)
        tensor = scope.read(name)
        held = value.type if isinstance(value, Value) else None
        if isinstance(held, TensorType) and (why := type_fault(held.dtype, self._device, self._network.trt)):
            raise Refused(why)
        if tensor.dtype != self._network.trt.DataType.UINT8 or tensor.is_network_input or tensor.is_network_output:
            # a layer of its own: one tensor may be several outputs, an input, or a constant
            tensor = scope.layer(self._network.definition.add_identity(tensor))
        tensor.name = final
        self._network.definition.mark_output(tensor)
        return final


def profile_of(graph: Graph, unbounded: int) -> tuple[Profile, dict[str, tuple[int, int, int]]]:
    """Smallest, likeliest and largest shape of each input; and the same of each dim.

    Args:
        graph: its dims and inputs are read.
        unbounded: largest size of a dim that has no bound of its own.
    """
    from ir.dims import evaluate

    dims: dict[str, tuple[int, int, int]] = {}
    for name, range_ in graph.dims.items():
        low = max(range_.min, 1)
        high = max(low, unbounded) if range_.max is None else range_.max
        dims[name] = (low, (low + high) // 2, high)
    shapes = {}
    for value, spec in graph.inputs.items():
        if spec.kind == "param" or all(isinstance(d, int) for d in value.tensor.shape):
            continue
        low_, opt, high_ = (
            tuple(evaluate(d, {n: v[i] for n, v in dims.items()}) for d in value.tensor.shape) for i in range(3)
        )
        shapes[spec.name] = (low_, opt, high_)
    return shapes, dims


def flows_of(network: Network) -> tuple[list[Flow], int]:
    """The conditionals and loops of a network, merged where several came from one node; and the products outside."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, key in network.flows.items():
        found.setdefault(key, []).extend(p for p, within in network.products if name in within)
    gates = {name for name, (_, lowering) in network.flows.items() if lowering == "if"}
    outside = sum(not gates & set(within) for _, within in network.products)
    return [Flow(node, lowering, tuple(products)) for (node, lowering), products in found.items()], outside
