"""LSTM, GRU and plain recurrent layers: whole in torch, whole in ONNX; only the order of the gates differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backends.arguments import Refused
from backends.onnx_emit.pointwise import Emitter
from backends.onnx_emit.scope import Scope
from ir import Arg, Node, Value


@dataclass(frozen=True)
class _Kind:
    """``order``: which of torch's gates stands at each of ONNX's places."""

    op: str
    order: tuple[int, ...]
    activation: str = ""


LSTM = _Kind("LSTM", (0, 3, 1, 2))  # torch: input forget cell output; ONNX: input output forget cell
GRU = _Kind("GRU", (1, 0, 2))  # torch: reset update new; ONNX: update reset hidden


def _gates(s: Scope, weights: Sequence[Value], order: tuple[int, ...]) -> str:
    """Weights of the directions, gates in ONNX's order, stacked. Constants: the engine folds all of this."""
    scope, stacked = s.root if all(s.is_constant(s[w]) for w in weights) else s, []
    for weight in weights:
        name = s[weight]
        if len(order) > 1:
            parts = scope.ops("Split", len(order), name, axis=0, num_outputs=len(order))
            name = scope.op("Concat", *(parts[i] for i in order), axis=0)
        stacked.append(scope.op("Unsqueeze", name, s.ints(0)))
    return stacked[0] if len(stacked) == 1 else scope.op("Concat", *stacked, axis=0)


def recurrent(kind: _Kind) -> Emitter:
    """``lstm.input``, ``gru.input``, ``rnn_*.input``: layer by layer."""

    def emit(
        s: Scope,
        node: Node,
        x: Value,
        state: Arg,
        params: tuple[Value, ...],
        biases: Arg,
        layers: int,
        dropout: Arg,
        train: Arg,
        both: Arg,
        batch_first: Arg,
    ) -> tuple[str, ...]:
        if train and dropout:
            raise Refused("a recurrent layer in training mode; put the model into eval mode")
        directions = 2 if both else 1
        step = 4 if biases else 2
        if len(params) != step * layers * directions or x.tensor.rank != 3:
            raise Refused("a recurrent layer with a projection, or without a batch")
        states = [s[v] for v in (state if isinstance(state, tuple) else (state,)) if isinstance(v, Value)]
        name = s.transpose(s[x], (1, 0, 2)) if batch_first else s[x]
        width = params[1].tensor.shape[1]
        finals: list[list[str]] = [[] for _ in states]
        for layer in range(layers):
            own = params[layer * directions * step : (layer + 1) * directions * step]
            bias = None
            if biases:
                halves = [_gates(s, own[i::step], kind.order) for i in (2, 3)]
                bias = s.op("Concat", *halves, axis=1)
            span = s.ints(layer * directions), s.ints((layer + 1) * directions), s.ints(0)
            initial = [s.op("Slice", state_name, *span) for state_name in states]
            inward, onward = (_gates(s, own[i::step], kind.order) for i in (0, 1))
            output, *last = s.ops(
                kind.op, 1 + len(states), name, inward, onward, bias, None, *initial, hidden_size=width,
                direction="bidirectional" if both else None,
                activations=[kind.activation] * directions if kind.activation else None,
                linear_before_reset=1 if kind.op == "GRU" else None,
            )  # fmt: skip
            # [seq, direction, batch, width] -> [seq, batch, direction * width]
            name = s.op("Reshape", s.transpose(output, (0, 2, 1, 3)), s.ints(0, 0, -1))
            for kept, new in zip(finals, last, strict=True):
                kept.append(new)
        name = s.transpose(name, (1, 0, 2)) if batch_first else name
        return name, *(k[0] if len(k) == 1 else s.op("Concat", *k, axis=0) for k in finals)

    return emit


RECURRENT: Mapping[str, Emitter] = {
    "aten.lstm.input": recurrent(LSTM),
    "aten.gru.input": recurrent(GRU),
    "aten.rnn_tanh.input": recurrent(_Kind("RNN", (0,), "Tanh")),
    "aten.rnn_relu.input": recurrent(_Kind("RNN", (0,), "Relu")),
}
