"""Reading and writing at indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from backends.arguments import Refused
from backends.tensorrt.layers import cast, constant, ew, pick, rank, reshape, select, shape, unsqueeze
from backends.tensorrt.network import Kind, NetworkScope

Attributes = Mapping[str, Any]
Names = Sequence[str]


def _from_start(s: NetworkScope, name: str, sizes: Any) -> Any:
    """Places counted from the start; ``sizes`` is a vector that broadcasts against them."""
    found = s.content(name)
    if found is not None and bool((found >= 0).all()):
        return s.read(name)
    places = s.read(name)
    wanted = cast(s, sizes, s.type_of(places))
    low = ew(s, "LESS", places, constant(s, torch.zeros([1] * max(rank(places), 1)), s.type_of(places)))
    if not rank(places):
        low, wanted = (reshape(s, t, []) for t in (low, wanted))
    return select(s, low, ew(s, "SUM", places, wanted), places)


def gather(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Gather`` along one dim."""
    x, axis = s.read(names[0]), attributes.get("axis", 0)
    axis %= rank(x)
    places = _from_start(s, names[1], pick(s, shape(s, x), [axis]))
    return s.layer(s.network.definition.add_gather(x, places, axis))


def gather_elements(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``GatherElements``."""
    x = s.read(names[0])
    layer = s.network.definition.add_gather_v2(x, s.read(names[1]), s.trt.GatherMode.ELEMENT)
    layer.axis = attributes.get("axis", 0) % rank(x)
    return s.layer(layer)


def gather_points(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``GatherND``."""
    x = s.read(names[0])
    depth = s.read(names[1]).shape[-1]
    places = _from_start(s, names[1], pick(s, shape(s, x), range(depth)))
    return s.layer(s.network.definition.add_gather_v2(x, places, s.trt.GatherMode.ND))


def _plain(attributes: Attributes) -> None:
    if attributes.get("reduction") is not None:
        raise Refused("a scatter that reduces; TensorRT only replaces")


def scatter_elements(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``ScatterElements`` that replaces."""
    _plain(attributes)
    x, places, updates = map(s.read, names)
    layer = s.network.definition.add_scatter(x, places, updates, s.trt.ScatterMode.ELEMENT)
    layer.axis = attributes.get("axis", 0) % rank(x)
    return s.layer(layer)


def scatter_points(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``ScatterND`` that replaces."""
    _plain(attributes)
    x = s.read(names[0])
    depth = s.read(names[1]).shape[-1]
    places = _from_start(s, names[1], pick(s, shape(s, x), range(depth)))
    return s.layer(s.network.definition.add_scatter(x, places, s.read(names[2]), s.trt.ScatterMode.ND))


def one_hot(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``OneHot``: each index against ``0 .. depth - 1``."""
    if not s.is_constant(names[1]):
        raise Refused("one_hot with a number of classes that is known only when it runs")
    places = unsqueeze(s, s.read(names[0]), [-1])
    classes = torch.arange(s.literal(names[1])[0]).reshape([1] * (rank(places) - 1) + [-1])
    hit = ew(s, "EQUAL", places, constant(s, classes, s.type_of(places)))
    return cast(s, hit, torch.int64)


def nonzero(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``NonZero``: a shape that the data decides."""
    if hasattr(s.trt, "ComputeCapability"):  # RTX has the layer, but no kernel
        raise Refused("a shape that the data decides (nonzero, boolean indexing); TensorRT-RTX has no kernel for it")
    return cast(s, s.layer(s.network.definition.add_non_zero(s.read(names[0]))), torch.int64)


INDEXING: Mapping[str, Kind] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_points,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_points,
    "OneHot": one_hot,
    "NonZero": nonzero,
}
