"""Shapes: views, permutations, slices, joins, ranges. No arithmetic on elements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from backends.arguments import Refused
from backends.tensorrt.layers import (
    cast,
    constant,
    cut,
    ew,
    ints,
    join,
    permute,
    pick,
    rank,
    reduce,
    reshape,
    reshape_to,
    scalar,
    select,
    shape,
    squeeze,
    unary,
    unsqueeze,
)
from backends.tensorrt.network import Kind, NetworkScope

Attributes = Mapping[str, Any]
Names = Sequence[str]
_FAR = 2**31  # bounds beyond it mean "to the end"
_I64 = torch.int64


def _axes(s: NetworkScope, names: Names, place: int) -> list[int] | None:
    return s.literal(names[place]) if len(names) > place and names[place] else None


def reshape_kind(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Reshape``."""
    keeps = not attributes.get("allowzero")
    if s.is_constant(names[1]):
        want = s.literal(names[1])
        found = s.small(names[0])
        if found is not None and 0 not in want:
            return s.const(found[0].reshape(want), found[0].dtype)
        return reshape(s, s.read(names[0]), want, keeps)
    return reshape_to(s, s.read(names[0]), s.read(names[1]), keeps)


def transpose(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Transpose``."""
    found = s.small(names[0])
    if found is not None:
        return s.const(found[0].permute(attributes["perm"]), found[0].dtype)
    return permute(s, s.read(names[0]), attributes["perm"])


def unsqueeze_kind(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Unsqueeze``."""
    axes = s.literal(names[1])
    found = s.small(names[0])
    if found is not None:
        total = found[0].dim() + len(axes)
        made = found[0]
        for axis in sorted(a % total for a in axes):
            made = made.unsqueeze(axis)
        return s.const(made, made.dtype)
    return unsqueeze(s, s.read(names[0]), axes)


def squeeze_kind(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Squeeze``."""
    axes = s.literal(names[1])
    found = s.small(names[0])
    if found is not None:
        return s.const(found[0].squeeze(axes), found[0].dtype)
    return squeeze(s, s.read(names[0]), axes)


def expand(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Expand``: a slice with stride 0 along what is repeated; a wanted size of 1 keeps what is there.

    Sizes stay numbers or single shapes wherever they are known: TensorRT must see which sizes are equal.
    """
    x = s.read(names[0])
    if s.is_constant(names[1]):
        want: list[Any] = list(s.literal(names[1]))
    else:
        want = [s.literal(p)[0] if s.is_constant(p) else s.read(p) for p in s.joined(names[1])]
        if len(want) != s.read(names[1]).shape[0]:
            vector = s.read(names[1])
            want = [pick(s, vector, [i]) for i in range(vector.shape[0])]
    want = [1] * (rank(x) - len(want)) + want
    x = unsqueeze(s, x, range(len(want) - rank(x)))
    sizes: list[Any] = []
    strides: list[Any] = []
    whole: Any = None
    for axis, (have, wanted) in enumerate(zip(x.shape, want, strict=True)):
        if have == 1:
            sizes.append(wanted)
            strides.append(0)
        elif have > 1:
            sizes.append(have if not isinstance(wanted, int) or wanted else 0)
            strides.append(1)
        else:
            whole = shape(s, x) if whole is None else whole
            length = pick(s, whole, [axis])
            if isinstance(wanted, int) and wanted == 1:
                sizes.append(length)
                strides.append(1)
            else:
                other = ints(s, wanted) if isinstance(wanted, int) else wanted
                sizes.append(select(s, scalar(s, "EQUAL", length, 1), other, length))
                strides.append(ew(s, "MIN", ew(s, "MAX", scalar(s, "SUB", length, 1), ints(s, 0)), ints(s, 1)))
    return cut(s, x, [0] * rank(x), _vector(s, sizes), _vector(s, strides))


def tile(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Tile``: a slice that wraps around."""
    x = s.read(names[0])
    if s.is_constant(names[1]) and all(d >= 0 for d in x.shape):
        times = s.literal(names[1])
        size: Any = [d * t for d, t in zip(x.shape, times, strict=True)]
    else:
        size = ew(s, "PROD", shape(s, x), s.read(names[1]))
    return cut(s, x, [0] * rank(x), size, [1] * rank(x), "WRAP")


def concat(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Concat``."""
    found = s.small(*names)
    if found is not None:
        made = torch.cat(found, attributes["axis"])
        return s.const(made, made.dtype)
    tensors = [s.read(n) for n in names]
    return join(s, tensors, attributes["axis"] % rank(tensors[0]))


def shape_kind(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Shape``, or a part of it."""
    x = s.read(names[0])
    start, stop, _ = slice(attributes.get("start"), attributes.get("end")).indices(rank(x))
    if all(d >= 0 for d in x.shape[start:stop]):
        return s.ints(*x.shape[start:stop])
    whole = s.layer(s.network.definition.add_shape(x))
    return whole if (start, stop) == (0, rank(x)) else pick(s, whole, range(start, stop))


def size_kind(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Size``: the number of elements, 0-d."""
    x = s.read(names[0])
    if not rank(x):
        return s.const(1, _I64)
    return reduce(s, "PROD", shape(s, x), [0], False)


def split(s: NetworkScope, names: Names, attributes: Attributes) -> list[Any]:
    """``Split`` into known lengths, or a known number of equal parts."""
    x = s.read(names[0])
    axis = attributes.get("axis", 0) % rank(x)
    if len(names) > 1 and not s.is_constant(names[1]):
        raise Refused("splits into lengths that are known only when it runs")
    if len(names) > 1:
        lengths = s.literal(names[1])
    else:
        count, whole = attributes["num_outputs"], x.shape[axis]
        if whole < 0:
            raise Refused("splits a dynamic dim")
        part = -(-whole // count)
        lengths = [min(part, whole - part * i) for i in range(count)]
    made, at = [], 0
    for length in lengths:
        made.append(_window(s, x, {axis: (at, length)}))
        at += length
    return made


def _window(s: NetworkScope, x: Any, windows: Mapping[int, tuple[int, int]]) -> Any:
    """Known ranges of some dims, all of the others."""
    total = rank(x)
    start = [windows[a][0] if a in windows else 0 for a in range(total)]
    size = [windows[a][1] if a in windows else d for a, d in enumerate(x.shape)]
    if all(d >= 0 for d in size):
        return cut(s, x, start, size, [1] * total)
    have = s.layer(s.network.definition.add_shape(x))
    parts = [ints(s, d) if d >= 0 else pick(s, have, [a]) for a, d in enumerate(size)]
    return cut(s, x, start, join(s, parts), [1] * total)


def slice_kind(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Slice``: bounds are clamped and counted from the end as in Python."""
    x = s.read(names[0])
    axes = _axes(s, names, 3)
    if axes is None:
        axes = list(range(s.read(names[1]).shape[0]))
    steps = _axes(s, names, 4) if len(names) < 5 or not names[4] or s.is_constant(names[4]) else []
    if steps == []:
        raise Refused("slices with a step that is known only when it runs")
    strides = [1] * rank(x)
    begins: list[Any] = [0] * rank(x)
    sizes: list[Any] = list(x.shape)
    have = None
    for index, axis in enumerate(a % rank(x) for a in axes):
        step = steps[index] if steps else 1
        strides[axis] = step
        bounds = [s.literal(n)[index] if s.is_constant(n) else None for n in names[1:3]]
        if x.shape[axis] >= 0 and None not in bounds:
            span = range(*slice(bounds[0], bounds[1], step).indices(x.shape[axis]))
            if step < 0 and bounds[1] is not None and bounds[1] < -x.shape[axis]:
                span = range(*slice(bounds[0], None, step).indices(x.shape[axis]))
            begins[axis], sizes[axis] = (span.start if len(span) else 0), len(span)
            continue
        have = shape(s, x) if have is None else have
        length = pick(s, have, [axis])
        begin, size = _span(s, names, index, bounds, length, step)
        begins[axis], sizes[axis] = begin, size
    if any(isinstance(d, int) and d < 0 for d in sizes):
        have = shape(s, x) if have is None else have
        sizes = [pick(s, have, [a]) if isinstance(d, int) and d < 0 else d for a, d in enumerate(sizes)]
    return cut(s, x, _vector(s, begins), _vector(s, sizes), strides)


def _vector(s: NetworkScope, parts: list[Any]) -> Any:
    if all(isinstance(p, int) for p in parts):
        return parts
    return join(s, [ints(s, p) if isinstance(p, int) else p for p in parts])


def _span(
    s: NetworkScope, names: Names, index: int, bounds: list[int | None], length: Any, step: int
) -> tuple[Any, Any]:
    """Begin and number of elements of one axis, as vectors of one."""
    if step < 0:
        if step == -1 and bounds[0] is not None and bounds[1] is not None and bounds[0] == -1 and bounds[1] < -_FAR:
            return scalar(s, "SUB", length, 1), length
        raise Refused("slices a dynamic dim backwards")
    zero = ints(s, 0)

    def place(which: int) -> Any:
        number = bounds[which]
        if number is not None:
            if number >= _FAR:
                return length
            if number == 0:
                return zero
            if number < 0:
                return ew(s, "MAX", scalar(s, "SUM", length, number), zero)
            return ew(s, "MIN", length, ints(s, number))
        at = cast(s, s.read(names[1 + which]), _I64)
        at = at if at.shape[0] == 1 else pick(s, at, [index])
        at = select(s, ew(s, "LESS", at, zero), ew(s, "SUM", at, length), at)
        return ew(s, "MIN", ew(s, "MAX", at, zero), length)

    begin, end = place(0), place(1)
    gap = ew(s, "SUB", end, begin)
    if step != 1:
        gap = scalar(s, "DIV", scalar(s, "SUM", gap, step - 1), step)
    return begin, ew(s, "MAX", gap, zero)


def range_kind(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Range``: a linear fill."""
    found = s.small(*names)
    if found is not None:
        start, stop, step = (t.item() for t in found)
        count = max(math.ceil((stop - start) / step), 0)
        return s.const(torch.arange(count, dtype=torch.float64) * step + start, found[0].dtype)
    start_, stop_, step_ = (s.read(n) for n in names)
    dtype = s.type_of(start_)
    gap = ew(s, "SUB", stop_, start_)
    if dtype.is_floating_point:
        count_ = cast(s, unary(s, "CEIL", ew(s, "DIV", gap, step_)), _I64)
    else:
        count_ = unary(s, "NEG", ew(s, "FLOOR_DIV", unary(s, "NEG", gap), step_))
    count_ = ew(s, "MAX", reshape(s, count_, [1]), ints(s, 0))
    from backends.tensorrt.library import data_type

    layer = s.network.definition.add_fill((1,), s.trt.FillOperation.LINSPACE, data_type(s.trt, dtype))
    layer.set_input(0, count_)
    layer.set_input(1, start_)
    layer.set_input(2, reshape(s, step_, [1]))
    return s.layer(layer)


def depth_to_space(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``DepthToSpace`` in the order CRD."""
    x, block = s.read(names[0]), attributes["blocksize"]
    have = shape(s, x)
    channels = x.shape[1] // (block * block)
    if x.shape[1] < 0:
        raise Refused("pixel_shuffle of a dynamic number of channels")
    batch, height, width = (pick(s, have, [a]) for a in (0, 2, 3))
    six = reshape_to(s, x, join(s, [batch, ints(s, channels, block, block), height, width]))
    turned = permute(s, six, (0, 1, 4, 2, 5, 3))
    high, wide = (scalar(s, "PROD", v, block) for v in (height, width))
    return reshape_to(s, turned, join(s, [batch, ints(s, channels), high, wide]))


def pad(s: NetworkScope, names: Names, attributes: Attributes) -> Any:
    """``Pad``: a slice that begins before the start and ends behind the end."""
    x = s.read(names[0])
    mode = {"constant": "FILL", "reflect": "REFLECT", "edge": "CLAMP"}[attributes.get("mode", "constant")]
    fill = None
    if mode == "FILL":
        fill = s.read(names[2]) if len(names) > 2 and names[2] else constant(s, 0, s.type_of(x))
    total = rank(x)
    if s.is_constant(names[1]):
        pads = s.literal(names[1])
        before, after = pads[:total], pads[total:]
        begin: Any = [-b for b in before]
        size: Any = [d + b + a for d, b, a in zip(x.shape, before, after, strict=True)]
        if any(d < 0 for d in x.shape):
            size = ew(s, "SUM", shape(s, x), ints(s, *(b + a for b, a in zip(before, after, strict=True))))
    else:
        both = s.read(names[1])
        before_ = pick(s, both, range(total))
        begin = unary(s, "NEG", before_)
        size = ew(s, "SUM", ew(s, "SUM", shape(s, x), before_), pick(s, both, range(total, 2 * total)))
    return cut(s, x, begin, size, [1] * total, mode, fill)


SHAPES: Mapping[str, Kind] = {
    "Reshape": reshape_kind,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze_kind,
    "Squeeze": squeeze_kind,
    "Expand": expand,
    "Tile": tile,
    "Concat": concat,
    "Shape": shape_kind,
    "Size": size_kind,
    "Split": split,
    "Slice": slice_kind,
    "Range": range_kind,
    "DepthToSpace": depth_to_space,
    "Pad": pad,
}
