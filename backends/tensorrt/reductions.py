"""Reductions, sorting, softmax, running sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from backends.arguments import Refused
from backends.tensorrt.layers import cast, constant, ew, rank, reduce, squeeze, unary, unsqueeze
from backends.tensorrt.network import Kind, NetworkScope

Attributes = Mapping[str, Any]
Names = Sequence[str]
_MOST = 3840  # elements that a TopK may give


def reduction(operation: str) -> Kind:
    """One reduction over the axes given, or over all."""

    def make(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
        x = s.read(names[0])
        axes = s.literal(names[1]) if len(names) > 1 and names[1] else list(range(rank(x)))
        return reduce(s, operation, x, axes, bool(attributes.get("keepdims", 1)))

    return make


def euclidean(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``ReduceL2``."""
    x = s.read(names[0])
    axes = s.literal(names[1]) if len(names) > 1 and names[1] else list(range(rank(x)))
    return unary(s, "SQRT", reduce(s, "SUM", ew(s, "PROD", x, x), axes, bool(attributes.get("keepdims", 1))))


def _top(s: NetworkScope, x: Any, axis: int, count: Any, largest: bool) -> tuple[Any, Any]:
    """Values and int64 places; a vector gets a dim for the time, which the layer wants."""
    flat = rank(x) == 1
    x = unsqueeze(s, x, [0]) if flat else x
    axis = 1 if flat else axis % rank(x)
    operation = s.trt.TopKOperation.MAX if largest else s.trt.TopKOperation.MIN
    layer = s.network.definition.add_topk(x, operation, count if isinstance(count, int) else 1, 1 << axis)
    if not isinstance(count, int):
        layer.set_input(1, count)
    values, places = s.layer(layer), cast(s, s.check(layer.get_output(1)), torch.int64)
    return (squeeze(s, values, [0]), squeeze(s, places, [0])) if flat else (values, places)


def topk(s: NetworkScope, names: Names, attributes: Attributes) -> tuple[Any, Any]:
    """``TopK``."""
    x = s.read(names[0])
    if s.is_constant(names[1]):
        count: Any = s.literal(names[1])[0]
        if count > _MOST:
            raise Refused(f"sorts {count} elements; TensorRT sorts at most {_MOST}")
    else:
        count = squeeze(s, cast(s, s.read(names[1]), torch.int32), [0])
    return _top(s, x, attributes.get("axis", -1), count, bool(attributes.get("largest", 1)))


def place(largest: bool) -> Kind:
    """``ArgMax``, ``ArgMin``."""

    def make(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
        x, axis = s.read(names[0]), attributes.get("axis", 0)
        places = _top(s, x, axis, 1, largest)[1]
        return places if attributes.get("keepdims", 1) else squeeze(s, places, [axis % rank(x)])

    return make


def softmax(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Softmax`` along one dim; a vector gets a dim for the time."""
    x = s.read(names[0])
    axis = attributes.get("axis", -1) % rank(x)
    flat = rank(x) == 1
    layer = s.network.definition.add_softmax(unsqueeze(s, x, [0]) if flat else x)
    layer.axes = 1 << (axis + flat)
    made = s.layer(layer)
    return squeeze(s, made, [0]) if flat else made


def log_softmax(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``x - max - log(sum(exp(x - max)))``: the logarithm of a softmax would lose small weights."""
    x = s.read(names[0])
    axis = [attributes.get("axis", -1) % rank(x)]
    gap = ew(s, "SUB", x, reduce(s, "MAX", x, axis, True))
    return ew(s, "SUB", gap, unary(s, "LOG", reduce(s, "SUM", unary(s, "EXP", gap), axis, True)))


def running_sum(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``CumSum``."""
    axis = constant(s, int(s.network.constants[names[1]]), torch.int32)
    return s.layer(
        s.network.definition.add_cumulative(s.read(names[0]), axis, s.trt.CumulativeOperation.SUM, False, False)
    )


REDUCTIONS: Mapping[str, Kind] = {
    "ReduceSum": reduction("SUM"),
    "ReduceMean": reduction("AVG"),
    "ReduceMax": reduction("MAX"),
    "ReduceMin": reduction("MIN"),
    "ReduceProd": reduction("PROD"),
    "ReduceL2": euclidean,
    "TopK": topk,
    "ArgMax": place(True),
    "ArgMin": place(False),
    "Softmax": softmax,
    "LogSoftmax": log_softmax,
    "CumSum": running_sum,
}
