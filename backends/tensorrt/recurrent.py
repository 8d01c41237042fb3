"""LSTM, GRU and plain recurrent layers: one counted loop per direction, after what does not depend on the state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from backends.arguments import Refused
from backends.tensorrt.layers import activation, cast, cut, ew, ints, join, matmul, pick, shape, squeeze, unsqueeze
from backends.tensorrt.network import Kind, NetworkScope

Attributes = Mapping[str, Any]
Names = Sequence[str]
Step = Callable[[NetworkScope, list[Any], list[Any], list[Any]], list[Any]]
"""``(scope, gates of the input, gates of the state, states)`` to the new states; the first one is the output."""


def _sigmoid(s: NetworkScope, x: Any) -> Any:
    return activation(s, "SIGMOID", x)


def _tanh(s: NetworkScope, x: Any) -> Any:
    return activation(s, "TANH", x)


def _lstm(s: NetworkScope, given: list[Any], own: list[Any], states: list[Any]) -> list[Any]:
    enter, leave, forget, fresh = (ew(s, "SUM", a, b) for a, b in zip(given, own, strict=True))
    kept = ew(s, "PROD", _sigmoid(s, forget), states[1])
    cell = ew(s, "SUM", kept, ew(s, "PROD", _sigmoid(s, enter), _tanh(s, fresh)))
    return [ew(s, "PROD", _sigmoid(s, leave), _tanh(s, cell)), cell]


def _gru(s: NetworkScope, given: list[Any], own: list[Any], states: list[Any]) -> list[Any]:
    update, reset = (_sigmoid(s, ew(s, "SUM", given[i], own[i])) for i in (0, 1))
    fresh = _tanh(s, ew(s, "SUM", given[2], ew(s, "PROD", reset, own[2])))
    return [ew(s, "SUM", fresh, ew(s, "PROD", update, ew(s, "SUB", states[0], fresh)))]


def _plain(kind: str) -> Step:
    return lambda s, given, own, states: [activation(s, kind, ew(s, "SUM", given[0], own[0]))]


def recurrent(gates: int) -> Kind:
    """``LSTM``, ``GRU``, ``RNN`` by their number of gates; ONNX's layout: x is ``[seq, batch, in]``."""

    def make(s: NetworkScope, names: Names, attributes: Attributes) -> list[Any]:
        x, count = s.read(names[0]), 2 if gates == 4 else 1
        plain = _plain("RELU" if "Relu" in attributes.get("activations", ()) else "TANH")
        step: Step = {4: _lstm, 3: _gru, 1: plain}[gates]
        directions = 2 if attributes.get("direction") == "bidirectional" else 1
        if gates == 3 and not attributes.get("linear_before_reset"):
            raise Refused("a GRU that resets before its product")
        outputs: list[Any] = []
        finals: list[list[Any]] = [[] for _ in range(count)]
        for direction in range(directions):
            output, last = _direction(s, x, names, attributes["hidden_size"], gates, direction, count, step)
            outputs.append(unsqueeze(s, output, [1]))
            for kept, new in zip(finals, last, strict=True):
                kept.append(unsqueeze(s, new, [0]))
        return [join(s, outputs, 1), *(join(s, parts, 0) for parts in finals)]

    return make


def _row(s: NetworkScope, name: str, direction: int) -> Any:
    x = s.read(name)
    return squeeze(s, _part(s, x, 0, direction, 1), [0])


def _part(s: NetworkScope, x: Any, axis: int, start: int, length: int) -> Any:
    total = len(x.shape)
    begin, size = [0] * total, list(x.shape)
    begin[axis], size[axis] = start, length
    if all(d >= 0 for d in size):
        return cut(s, x, begin, size, [1] * total)
    have = shape(s, x)
    parts = [ints(s, d) if d >= 0 else pick(s, have, [a]) for a, d in enumerate(size)]
    return cut(s, x, begin, join(s, parts), [1] * total)


def _direction(
    s: NetworkScope, x: Any, names: Names, width: int, gates: int, direction: int, count: int, step: Step
) -> tuple[Any, list[Any]]:
    weight, inner_weight = (unsqueeze(s, _row(s, names[i], direction), [0]) for i in (1, 2))
    given = matmul(s, x, weight, turn_b=True)
    bias: Any = None
    if len(names) > 3 and names[3]:
        both = _row(s, names[3], direction)
        given = ew(s, "SUM", given, _part(s, both, 0, 0, gates * width))
        bias = _part(s, both, 0, gates * width, gates * width)
    states = [_row(s, names[5 + i], direction) for i in range(count)]
    network, kinds = s.network, s.trt
    turns = network.definition.add_loop()
    turns.name = s.emission.fresh("steps")
    inner = NetworkScope(network, s, "loop", turns)
    number = cast(s, squeeze(s, pick(s, shape(s, x), [0]), [0]), torch.int32)
    turns.add_trip_limit(number, kinds.TripLimit.COUNT)
    now = s.check(turns.add_iterator(given, 0, bool(direction)).get_output(0))
    memory = [turns.add_recurrence(state) for state in states]
    held = [s.check(m.get_output(0)) for m in memory]
    own = matmul(inner, held[0], squeeze(s, inner_weight, [0]), turn_b=True)
    own = own if bias is None else ew(inner, "SUM", own, bias)
    parts = [[_part(inner, t, 1, g * width, width) for g in range(gates)] for t in (now, own)]
    after = step(inner, parts[0], parts[1], held)
    for recurrence, new in zip(memory, after, strict=True):
        recurrence.set_input(1, s.check(new))
    how = kinds.LoopOutput.REVERSE if direction else kinds.LoopOutput.CONCATENATE
    collected = turns.add_loop_output(after[0], how, 0)
    collected.set_input(1, number)
    last = [s.layer(turns.add_loop_output(h.get_output(0), kinds.LoopOutput.LAST_VALUE)) for h in memory]
    return s.layer(collected), last


RECURRENT: Mapping[str, Kind] = {"LSTM": recurrent(4), "GRU": recurrent(3), "RNN": recurrent(1)}
