"""The emitted network, run in torch: what our emission says, without a GPU and without TensorRT's kernels.

Walks the layers of the network definition itself, lazily from its outputs: of a conditional only the side taken, of a
loop one turn after the other. It proves the emission, not the kernels that the package will choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from backends.base import Device, Engine
from backends.payload import original_name
from backends.tensorrt.emit import Emitted, emit
from backends.tensorrt.simulate_layers import RULES
from backends.tensorrt.simulate_narrow import NARROW, content_of
from ir import Graph

_CLASSES: Mapping[str, str] = {
    "ELEMENTWISE": "IElementWiseLayer", "MATRIX_MULTIPLY": "IMatrixMultiplyLayer", "TOPK": "ITopKLayer",
    "KV_CACHE_UPDATE": "IKVCacheUpdateLayer", "CONDITIONAL_INPUT": "IIfConditionalInputLayer",
    "CONDITIONAL_OUTPUT": "IIfConditionalOutputLayer", "SOFTMAX": "ISoftMaxLayer", "TRIP_LIMIT": "ITripLimitLayer",
}  # fmt: skip
_FLOW = frozenset({"CONDITIONAL_OUTPUT", "LOOP_OUTPUT", "RECURRENCE", "ITERATOR"})


def simulate(graph: Graph, device: Device, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs of the network that would be built for a device.

    Raises:
        UnsupportedError: lists everything that cannot be carried.
    """
    return simulated(graph, device)(inputs)


def simulated(graph: Graph, device: Device) -> Engine:
    """The same as an engine."""
    return Simulation(emit(graph, device))


class Simulation(Engine):
    """One network; ``ran`` counts how often each layer was run, by its name, in the last call."""

    def __init__(self, emitted: Emitted) -> None:
        self._emitted = emitted
        self._trt = emitted.network.trt
        definition = emitted.network.definition
        self._layers = [self._typed(definition.get_layer(i)) for i in range(definition.num_layers)]
        self._made: dict[str, tuple[Any, int]] = {}
        self._readers: dict[str, list[Any]] = {}
        self._conditions: dict[str, str] = {}
        self._limits: dict[str, list[Any]] = {}
        self._memory: dict[str, list[Any]] = {}
        for layer in self._layers:
            for index in range(layer.num_outputs):
                self._made[layer.get_output(index).name] = (layer, index)
            for name in self.inputs_of(layer):
                if name is not None:
                    self._readers.setdefault(name, []).append(layer)
            kind = self.kind_of(layer)
            if kind == "CONDITION":
                self._conditions[layer.conditional.name] = layer.get_input(0).name
            elif kind == "TRIP_LIMIT":
                self._limits.setdefault(layer.loop.name, []).append(layer)
            elif kind in ("RECURRENCE", "ITERATOR"):
                self._memory.setdefault(layer.loop.name, []).append(layer)
        self._turning = {name: self._within(layers) for name, layers in self._memory.items()}
        self.ran: dict[str, int] = {}

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once."""
        self.ran = {}
        given = {name: inputs[name] for name in self._emitted.inputs}
        frame = _Frame(self, given)
        with torch.no_grad():
            return {original_name(name): frame.value(name).clone() for name in self._emitted.outputs}

    def facts(self) -> Mapping[str, int | str]:
        """Layers by kind, as far as the reports count them."""
        kinds = [self.kind_of(layer) for layer in self._layers]
        return {
            "matmuls": kinds.count("MATRIX_MULTIPLY") + kinds.count("CONVOLUTION"),
            "attentions": kinds.count("ATTENTION_OUTPUT"),
            "ifs": kinds.count("CONDITION"),
            "loops": len(self._memory),
            "layers": len(kinds),
        }

    # --- reading the definition ----------------------------------------------------------------

    def _typed(self, layer: Any) -> Any:
        """The API gives plain layers; their own attributes are those of the class of their type."""
        kind = str(layer.type).rpartition(".")[2]
        name = _CLASSES.get(kind) or "I" + "".join(w.capitalize() for w in kind.split("_")) + "Layer"
        layer.__class__ = getattr(self._trt, name)
        return layer

    def kind_of(self, layer: Any) -> str:
        """Name of a layer's type."""
        return str(self._trt.ILayer.type.fget(layer)).rpartition(".")[2]  # an activation has a type of its own

    def inputs_of(self, layer: Any) -> list[str | None]:
        """Names of what a layer reads, by place."""
        tensors = [layer.get_input(i) for i in range(layer.num_inputs)]
        return [None if t is None else t.name for t in tensors]

    def _within(self, starts: Sequence[Any]) -> set[str]:
        """Names of what changes from turn to turn of a loop."""
        loop = starts[0].loop.name
        found: set[str] = set()
        open_ = [layer.get_output(0).name for layer in starts]
        while open_:
            name = open_.pop()
            if name in found:
                continue
            found.add(name)
            for reader in self._readers.get(name, ()):
                if self.kind_of(reader) in ("LOOP_OUTPUT", "RECURRENCE") and reader.loop.name == loop:
                    continue
                if self.kind_of(reader) == "CONDITION":
                    open_ += self._outputs_of_conditional(reader.conditional.name)
                if self.kind_of(reader) == "TRIP_LIMIT":
                    open_ += [o.get_output(0).name for o in self._layers if self._is_output(o, reader.loop.name)]
                open_ += [reader.get_output(i).name for i in range(reader.num_outputs)]
                if self.kind_of(reader) == "ATTENTION_INPUT":
                    open_.append(reader.attention.get_output(0).name)
        return found

    def _is_output(self, layer: Any, loop: str) -> bool:
        return self.kind_of(layer) == "LOOP_OUTPUT" and layer.loop.name == loop

    def _outputs_of_conditional(self, name: str) -> list[str]:
        kinds = ((layer, self.kind_of(layer)) for layer in self._layers)
        return [
            layer.get_output(0).name
            for layer, kind in kinds
            if kind == "CONDITIONAL_OUTPUT" and layer.conditional.name == name
        ]


class _Frame:
    """Values of one turn of a loop, or of the whole network."""

    def __init__(
        self,
        run: Simulation,
        values: Mapping[str, Tensor],
        outer: _Frame | None = None,
        turning: frozenset[str] = frozenset(),
    ) -> None:
        self._run = run
        self._values: dict[str, Tensor] = dict(values)
        self._outer = outer
        self._turning = turning

    def value(self, name: str) -> Tensor:
        """What a tensor holds; deep networks are walked without recursion."""
        stack = [name]
        while stack:
            at = stack[-1]
            if self._known(at):
                stack.pop()
                continue
            layer, _ = self._run._made[at]
            missing = [n for n in self._needs(layer) if not self._known(n)]
            if missing:
                stack += missing
                continue
            self._compute(layer)
            stack.pop()
        return self._get(name)

    def _known(self, name: str) -> bool:
        if name in self._values:
            return True
        if self._outer is not None and name not in self._turning:
            self._values[name] = self._outer.value(name)
            return True
        return False

    def _get(self, name: str) -> Tensor:
        return self._values[name]

    def _needs(self, layer: Any) -> list[str]:
        """What must be known before a layer can run; of a conditional: the condition, then the side taken."""
        run = self._run
        kind = run.kind_of(layer)
        if kind == "CONDITIONAL_OUTPUT":
            condition = run._conditions[layer.conditional.name]
            if not self._known(condition):
                return [condition]
            return [layer.get_input(0 if bool(self._get(condition)) else 1).name]
        if kind == "LOOP_OUTPUT":
            starts = [m.get_input(0).name for m in run._memory[layer.loop.name]]
            counts = [t.get_input(0).name for t in run._limits[layer.loop.name] if _is_count(t)]
            return starts + counts
        if kind == "ATTENTION_OUTPUT":
            return [n for n in _attention_inputs(layer.attention) if n is not None]
        return [n for n in run.inputs_of(layer) if n is not None]

    def _compute(self, layer: Any) -> None:
        run = self._run
        kind = run.kind_of(layer)
        run.ran[layer.name] = run.ran.get(layer.name, 0) + 1
        if kind == "CONDITIONAL_OUTPUT":
            taken = bool(self._get(run._conditions[layer.conditional.name]))
            made: Any = self._get(layer.get_input(0 if taken else 1).name)
        elif kind == "LOOP_OUTPUT":
            self._turn(layer.loop.name)
            return
        elif kind == "CONSTANT":
            made = content_of(run._trt, *run._emitted.network.contents[layer.name])
        elif kind == "ATTENTION_OUTPUT":
            names = _attention_inputs(layer.attention)
            made = NARROW[kind](run._trt, layer, [None if n is None else self._get(n) for n in names])
        elif kind in ("CONDITIONAL_INPUT", "ATTENTION_INPUT"):
            made = self._get(layer.get_input(0).name)
        else:
            rule = RULES.get(kind) or NARROW[kind]
            made = rule(run._trt, layer, [None if n is None else self._get(n) for n in run.inputs_of(layer)])
        results = made if isinstance(made, list) else [made]
        for index in range(layer.num_outputs):
            self._values[layer.get_output(index).name] = results[index]

    def _turn(self, loop: str) -> None:
        """Run a loop to its end and keep all its outputs."""
        run = self._run
        memory, limits = run._memory[loop], run._limits[loop]
        source = {m: self._get(m.get_input(0).name) for m in memory}
        state = {m.get_output(0).name: source[m] for m in memory if run.kind_of(m) == "RECURRENCE"}
        streams = [m for m in memory if run.kind_of(m) == "ITERATOR"]
        ends = [layer for layer in run._layers if run._is_output(layer, loop)]
        collected: dict[str, list[Tensor]] = {e.get_output(0).name: [] for e in ends if not _is_last(e)}
        most = [int(self._get(t.get_input(0).name)) for t in limits if _is_count(t)]
        tests = [t.get_input(0).name for t in limits if not _is_count(t)]
        turning = frozenset(run._turning[loop]) | self._turning
        count = 0
        while True:
            frame = _Frame(run, state | _slices(streams, source, count), self, turning)
            if any(count >= n for n in most) or not all(bool(frame.value(t)) for t in tests):
                break
            for end in ends:
                if not _is_last(end):
                    collected[end.get_output(0).name].append(frame.value(end.get_input(0).name))
            state = {
                m.get_output(0).name: frame.value(m.get_input(1).name) for m in memory if run.kind_of(m) == "RECURRENCE"
            }
            count += 1
        for end in ends:
            name = end.get_output(0).name
            if _is_last(end):
                self._values[name] = frame.value(end.get_input(0).name)
            else:
                rows = collected[name] if _word(end.kind) == "CONCATENATE" else collected[name][::-1]
                self._values[name] = torch.stack(rows, end.axis)


def _word(member: Any) -> str:
    return str(member).rpartition(".")[2]


def _is_last(end: Any) -> bool:
    return _word(end.kind) == "LAST_VALUE"


def _slices(streams: Sequence[Any], source: Mapping[Any, Tensor], turn: int) -> dict[str, Tensor]:
    """What each iterator gives in a turn; nothing past its end, which only the test of the last turn sees."""
    found = {}
    for stream in streams:
        whole = source[stream]
        length = whole.shape[stream.axis]
        if turn < length:
            place = length - 1 - turn if stream.reverse else turn
            found[stream.get_output(0).name] = whole.select(stream.axis, place)
    return found


def _is_count(limit: Any) -> bool:
    return str(limit.kind).endswith("COUNT")


def _attention_inputs(attention: Any) -> list[str | None]:
    tensors = [attention.get_input(i) for i in range(3)]
    extra = [attention.mask, getattr(attention, "key_value_lengths", None)]
    return [None if t is None else t.name for t in (*tensors, *extra)]
