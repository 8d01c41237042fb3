"""Shapes: views, permutations, slices, joins. No arithmetic on elements."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from backends.arguments import Refused, moved_dims, result_type, shape_of, widest
from backends.tvm.dtypes import axis_of, cast, wide
from backends.tvm.scope import Emitter, Kernel, Scope, Tensor, aligned
from ir import Arg, Dim, DimRange, Node, Value, evaluate, show_dim, symbols_of

LONGEST = 2**63 - 1
Move = Callable[[Kernel, Sequence[Any]], Sequence[Any]]


def moved(s: Scope, name: str, x: Tensor, shape: Sequence[Dim], move: Move) -> Tensor:
    """Elements from other places: ``move(kernel, index of the result)`` is where each comes from."""
    return s.compute(name, shape, x.dtype, lambda k, index, t: t(*move(k, index)), x)


def reshape(s: Scope, node: Node, x: Value, *_: Arg) -> Tensor:
    """Every spelling of a view that keeps the order of elements: the result's type says the shape."""
    return s.reshape(s[x], shape_of(node))


def permuted(s: Scope, x: Tensor, order: Sequence[int]) -> Tensor:
    """Dims in another order; a view when only dims of one move."""
    if list(order) == list(range(x.rank)):
        return x
    shape = tuple(x.shape[d] for d in order)
    real = [d for d in order if x.shape[d] != 1]
    if real == sorted(real):
        return s.reshape(x, shape)
    back = [list(order).index(d) for d in range(x.rank)]
    return moved(s, "transpose", x, shape, lambda k, index: [index[p] for p in back])


def permute(s: Scope, node: Node, x: Value, dims: tuple[int, ...]) -> Tensor:
    """``aten.permute``."""
    return permuted(s, s[x], [d % x.tensor.rank for d in dims])


def transpose(s: Scope, node: Node, x: Value, a: int, b: int) -> Tensor:
    """Swap two dims."""
    order = list(range(x.tensor.rank))
    if order:
        order[a], order[b] = order[b], order[a]
    return permuted(s, s[x], order)


def transpose_2d(s: Scope, node: Node, x: Value) -> Tensor:
    """``aten.t``, ``aten.numpy_T``."""
    return permuted(s, s[x], list(range(x.tensor.rank))[::-1])


def transpose_matrix(s: Scope, node: Node, x: Value) -> Tensor:
    """``x.mT``."""
    return transpose(s, node, x, -1, -2)


def movedim(s: Scope, node: Node, x: Value, source: Arg, destination: Arg) -> Tensor:
    """``aten.movedim``."""
    return permuted(s, s[x], moved_dims(x.tensor.rank, source, destination))


def expand(s: Scope, node: Node, x: Value, *_: Arg) -> Tensor:
    """Repeat dims of one."""
    return expanded(s, s[x], shape_of(node))


def expanded(s: Scope, x: Tensor, shape: Sequence[Dim]) -> Tensor:
    """Broadcast to a shape."""
    if x.shape == tuple(shape):
        return x
    if tuple(d for d in shape if d != 1) == tuple(d for d in x.shape if d != 1):
        return s.reshape(x, shape)
    return moved(s, "expand", x, shape, lambda k, index: aligned(x.shape, index))


def cut(s: Scope, node: Node, x: Value, dim: Arg = 0, start: Arg = None, end: Arg = None, step: Arg = 1) -> Tensor:
    """``aten.slice``: bounds are clamped and counted from the end as torch does."""
    if (start is None or start == 0) and (end is None or end == LONGEST) and step == 1:
        return s[x]
    axis = axis_of(x.tensor.rank, dim)
    size, by = x.tensor.shape[axis], s.size(step)
    begin = s.size(start) if start is not None else 0
    stop = s.size(end) if end is not None else LONGEST
    check_length(s, begin, stop, by, size, shape_of(node)[axis])

    def move(k: Kernel, index: Sequence[Any]) -> Sequence[Any]:
        first = _clamped(k, begin, size)
        return [first + i * k.dim(by) if d == axis else i for d, i in enumerate(index)]

    return moved(s, "slice", s[x], shape_of(node), move)


def check_length(s: Scope, start: Dim, stop: Dim, step: Dim, size: Dim, said: Dim) -> None:
    """Types are derived for sizes of two and more: refuse a slice that is shorter than its type says.

    Raises:
        Refused: there are sizes, within the bounds of the dims, for which that is so.
    """
    names = sorted({n for d in (start, stop, step, size, said) for n in symbols_of(d)})
    ranges = [s.emission.graph.dims.get(n, DimRange(0, None)) for n in names]
    for sizes in itertools.product(*(_corners(r) for r in ranges)):
        table = dict(zip(names, sizes, strict=True))
        a, b, by, n = (evaluate(d, table) for d in (start, stop, step, size))
        if len(range(*slice(a, b, by).indices(n))) != evaluate(said, table):
            told = ", ".join(f"{k} = {v}" for k, v in table.items())
            raise Refused(f"a slice whose length is not {show_dim(said)} for {told}; narrow the range of the dim")


def _corners(bounds: DimRange) -> list[int]:
    top = bounds.max if bounds.max is not None else bounds.min + 1_000_003
    return sorted({min(bounds.min + i, top) for i in range(4)} | {(bounds.min + top) // 2, top})


def _clamped(k: Kernel, place: Dim, size: Dim) -> Any:
    from tvm import tirx

    if isinstance(place, int) and place == 0:
        return 0
    length = k.dim(size)
    at = k.dim(place)
    if isinstance(place, int):
        if place > 0:
            return place if isinstance(size, int) and place <= size else tirx.min(at, length)
        return tirx.max(at + length, tirx.const(0, "int64"))
    at = tirx.Select(at < 0, at + length, at)
    return tirx.max(tirx.min(at, length), tirx.const(0, "int64"))


def narrow(s: Scope, node: Node, x: Value, dim: int, start: Arg, length: Arg) -> Tensor:
    """``length`` elements from ``start``."""
    axis = axis_of(x.tensor.rank, dim)
    return _from(s, s[x], axis, start, shape_of(node), keep=True)


def select(s: Scope, node: Node, x: Value, dim: int, index: Arg) -> Tensor:
    """One slice, the dim dropped."""
    return _from(s, s[x], axis_of(x.tensor.rank, dim), index, shape_of(node), keep=False)


def _from(s: Scope, x: Tensor, axis: int, start: Arg, shape: Sequence[Dim], keep: bool) -> Tensor:
    """Elements from a place that may be counted from the end, or be a number in a tensor."""
    from tvm import tirx

    where = start if isinstance(start, int) else s.get(start)
    others = [where] if isinstance(where, Tensor) else []

    def body(k: Kernel, index: Sequence[Any], t: Any, *held: Any) -> Any:
        size = k.dim(x.shape[axis])
        if isinstance(where, int):
            first = tirx.const(where, "int64") if where >= 0 else size + where
        else:
            at = held[0](*[0] * where.rank) if isinstance(where, Tensor) else k.dim(where)
            at = tirx.Cast("int64", at)
            first = tirx.max(tirx.min(tirx.Select(at < 0, at + size, at), size - 1), tirx.const(0, "int64"))
        places = list(index)
        if keep:
            places[axis] = first + places[axis]
        else:
            places.insert(axis, first)
        return t(*places)

    return s.compute("slice", shape, x.dtype, body, x, *others)


def split(s: Scope, node: Node, x: Value, sizes: Arg, dim: int = 0) -> list[Tensor]:
    """``split``, ``chunk``, ``split_with_sizes``: the results' types say the sizes."""
    axis = axis_of(x.tensor.rank, dim)
    made, start = [], 0
    for value in node.results:
        begin: Dim = start
        if len(node.results) == 1:
            return [s[x]]

        def move(k: Kernel, index: Sequence[Any], begin: Dim = begin) -> Sequence[Any]:
            return [i + k.dim(begin) if d == axis else i for d, i in enumerate(index)]

        made.append(moved(s, "split", s[x], value.tensor.shape, move))
        start = begin + value.tensor.shape[axis]
    return made


def unbind(s: Scope, node: Node, x: Value, dim: int = 0) -> list[Tensor]:
    """Every slice along a dim."""
    axis = axis_of(x.tensor.rank, dim)
    return [_from(s, s[x], axis, i, v.tensor.shape, keep=False) for i, v in enumerate(node.results)]


def cat(s: Scope, node: Node, tensors: tuple[Value, ...], dim: int = 0) -> Tensor:
    """Join; an empty vector among tensors of another rank is skipped, as torch still does."""
    rank = node.results[0].tensor.rank
    kept = [s[t] for t in tensors if t.tensor.rank == rank and t.tensor.shape != (0,)] or [s[t] for t in tensors]
    return joined(s, kept, dim % rank, shape_of(node), result_type(node))


def joined(s: Scope, parts: Sequence[Tensor], axis: int, shape: Sequence[Dim], dtype: Any) -> Tensor:
    """Tensors one after the other along a dim."""
    from tvm import tirx

    if len(parts) == 1:
        return s.tensor(parts[0], dtype)
    inputs = list(dict.fromkeys(parts))

    def body(k: Kernel, index: Sequence[Any], *held: Any) -> Any:
        read = dict(zip(inputs, held, strict=True))
        starts: list[Dim] = [0]
        for part in parts[:-1]:
            starts.append(starts[-1] + part.shape[axis])
        value = None
        for part, start in reversed(list(zip(parts, starts, strict=True))):
            places = list(index)
            places[axis] = index[axis] - k.dim(start)
            element = cast(read[part](*places), dtype)
            after = k.dim(start + part.shape[axis])
            value = element if value is None else tirx.if_then_else(index[axis] < after, element, value)
        return value

    return s.compute("cat", shape, dtype, body, *inputs)


def stack(s: Scope, node: Node, tensors: tuple[Value, ...], dim: int = 0) -> Tensor:
    """Join along a new dim."""
    at = dim % node.results[0].tensor.rank
    parts = []
    for value in tensors:
        shape = list(value.tensor.shape)
        shape.insert(at, 1)
        # a view of its own each: the same tensor may stand several times
        parts.append(s.reshape(s[value], shape))
    return joined(s, parts, at, shape_of(node), widest(tuple(t.tensor.dtype for t in tensors)))


def repeat(s: Scope, node: Node, x: Value, repeats: tuple[Arg, ...]) -> Tensor:
    """``aten.repeat``, ``aten.tile``."""
    from tvm import tirx

    have = x.tensor.shape

    def move(k: Kernel, index: Sequence[Any]) -> Sequence[Any]:
        tail = index[len(index) - len(have) :] if have else ()
        return [0 if d == 1 else tirx.floormod(i, k.dim(d)) for d, i in zip(have, tail, strict=True)]

    return moved(s, "repeat", s[x], shape_of(node), move)


def repeat_interleave(s: Scope, node: Node, x: Value, repeats: Arg, dim: Arg = None, *_: Arg) -> Tensor:
    """Each element ``repeats`` times, the same number for all."""
    from tvm import tirx

    tensor = s[x] if dim is not None else s.reshape(s[x], (x.tensor.numel,))
    axis, times = (axis_of(x.tensor.rank, dim) if dim is not None else 0), s.size(repeats)

    def move(k: Kernel, index: Sequence[Any]) -> Sequence[Any]:
        return [tirx.floordiv(i, k.dim(times)) if d == axis else i for d, i in enumerate(index)]

    return moved(s, "repeat", tensor, shape_of(node), move)


def flip(s: Scope, node: Node, x: Value, dims: tuple[int, ...]) -> Tensor:
    """Reverse dims."""
    rank, shape = x.tensor.rank, x.tensor.shape
    axes = {d % rank for d in dims}
    return moved(
        s,
        "flip",
        s[x],
        shape,
        lambda k, index: [k.dim(shape[d]) - 1 - i if d in axes else i for d, i in enumerate(index)],
    )


def roll(s: Scope, node: Node, x: Value, shifts: Arg, dims: Arg = ()) -> Tensor:
    """Move elements around; what leaves at the end enters at the start."""
    from tvm import tirx

    moves = shifts if isinstance(shifts, tuple) else (shifts,)
    axes = dims if isinstance(dims, tuple) else (dims,)
    tensor = s[x] if axes else s.reshape(s[x], (x.tensor.numel,))
    by: dict[int, Any] = {}
    for position, move in enumerate(moves):
        axis = axis_of(tensor.rank, axes[position]) if axes else 0
        by[axis] = by.get(axis, 0) + s.size(move)

    def back(k: Kernel, index: Sequence[Any]) -> Sequence[Any]:
        return [tirx.floormod(i - k.dim(by[d]), k.dim(tensor.shape[d])) if d in by else i for d, i in enumerate(index)]

    return s.reshape(moved(s, "roll", tensor, tensor.shape, back), shape_of(node))


def pixel_shuffle(s: Scope, node: Node, x: Value, factor: int) -> Tensor:
    """Channels to space, torch's order."""
    from tvm import tirx

    def move(k: Kernel, index: Sequence[Any]) -> Sequence[Any]:
        *lead, c, h, w = index
        channel = c * (factor * factor) + tirx.floormod(h, factor) * factor + tirx.floormod(w, factor)
        return [*lead, channel, tirx.floordiv(h, factor), tirx.floordiv(w, factor)]

    return moved(s, "pixel_shuffle", s[x], shape_of(node), move)


def pixel_unshuffle(s: Scope, node: Node, x: Value, factor: int) -> Tensor:
    """Space to channels, torch's order."""
    from tvm import tirx

    def move(k: Kernel, index: Sequence[Any]) -> Sequence[Any]:
        *lead, c, h, w = index
        inner = tirx.floormod(c, factor * factor)
        return [
            *lead, tirx.floordiv(c, factor * factor), h * factor + tirx.floordiv(inner, factor),
            w * factor + tirx.floormod(inner, factor),
        ]  # fmt: skip

    return moved(s, "pixel_unshuffle", s[x], shape_of(node), move)


def meshgrid(s: Scope, node: Node, tensors: tuple[Value, ...], indexing: Arg = "ij") -> list[Tensor]:
    """A grid from vectors."""
    order = list(range(len(tensors)))
    if indexing == "xy" and len(tensors) > 1:
        order[0], order[1] = 1, 0
    made = []
    for axis, tensor, value in zip(order, tensors, node.results, strict=True):

        def move(k: Kernel, index: Sequence[Any], axis: int = axis, rank: int = tensor.tensor.rank) -> Sequence[Any]:
            return [index[axis]] if rank else []

        made.append(moved(s, "meshgrid", s[tensor], value.tensor.shape, move))
    return made


def unfold(s: Scope, node: Node, x: Value, dim: int, size: int, step: int) -> Tensor:
    """Sliding windows along a dim, each as a new last dim."""
    axis = axis_of(x.tensor.rank, dim)
    return moved(
        s, "unfold", s[x], shape_of(node),
        lambda k, index: [i * step + index[-1] if d == axis else i for d, i in enumerate(index[:-1])],
    )  # fmt: skip


def diagonal(s: Scope, node: Node, x: Value, offset: int = 0, first: int = 0, second: int = 1) -> Tensor:
    """The diagonal of a plane as the last dim."""
    rank = x.tensor.rank
    a, b = first % rank, second % rank
    rest = [d for d in range(rank) if d not in (a, b)]

    def move(k: Kernel, index: Sequence[Any]) -> Sequence[Any]:
        places: dict[int, Any] = dict(zip(rest, index[:-1], strict=True))
        places[a], places[b] = index[-1] + max(-offset, 0), index[-1] + max(offset, 0)
        return [places[d] for d in range(rank)]

    return moved(s, "diagonal", s[x], shape_of(node), move)


def pad(s: Scope, node: Node, x: Value, pads: Sequence[Arg], mode: Arg = "constant", value: Arg = None) -> Tensor:
    """``aten.pad``: torch counts from the last dim, in pairs; negative ones cut."""
    from tvm import tirx

    from backends.tvm.dtypes import literal

    rank, have, dtype = x.tensor.rank, x.tensor.shape, result_type(node)
    before: dict[int, Dim] = {rank - 1 - i: s.size(pads[2 * i]) for i in range(len(pads) // 2)}
    if mode not in ("constant", "reflect", "replicate", "circular"):
        raise Refused(f"padding mode {mode}")

    def body(k: Kernel, index: Sequence[Any], t: Any) -> Any:
        places, inside = list(index), []
        for axis, start in before.items():
            at, size = index[axis] - k.dim(start), k.dim(have[axis])
            if mode == "reflect":
                at = tirx.Select(at < 0, -at, at)
                at = tirx.Select(at >= size, size * 2 - 2 - at, at)
            elif mode == "replicate":
                at = tirx.max(tirx.min(at, size - 1), tirx.const(0, "int64"))
            elif mode == "circular":
                at = tirx.floormod(at, size)
            else:
                inside += [at >= 0, at < size]
            places[axis] = at
        if not inside:
            return t(*places)
        return tirx.if_then_else(tirx.all(*inside), t(*places), cast(literal(value or 0, wide(dtype)), dtype))  # type: ignore[arg-type]

    return s.compute("pad", shape_of(node), dtype, body, s[x])


def constant_pad(s: Scope, node: Node, x: Value, pads: Sequence[Arg], value: Arg = 0) -> Tensor:
    """``constant_pad_nd``."""
    return pad(s, node, x, pads, "constant", value)


def padded_by(mode: str) -> Emitter:
    """``reflection_pad``, ``replication_pad``."""
    return lambda s, node, x, pads: pad(s, node, x, pads, mode)


_RESHAPES = (
    "reshape.default", "view.default", "_unsafe_view.default", "flatten.using_ints", "view_copy.default",
    "ravel.default", "_reshape_alias.default", "view_as.default", "reshape_as.default", "unflatten.int",
    "unsqueeze.default", "unsqueeze_copy.default", "squeeze.default", "squeeze.dim", "squeeze.dims",
    "squeeze_copy.dims", "reshape_copy.default",
)  # fmt: skip
_SPLITS = (
    "split.Tensor", "split.sizes", "split_with_sizes.default", "chunk.default", "tensor_split.sections",
    "split_copy.Tensor", "split_with_sizes_copy.default", "unsafe_split.Tensor", "unsafe_chunk.default",
    "unsafe_split_with_sizes.default",
)  # fmt: skip

VIEWS: Mapping[str, Emitter] = {
    **{f"aten.{n}": reshape for n in _RESHAPES},
    **{f"aten.{n}.default": permute for n in ("permute", "permute_copy")},
    **{f"aten.{n}.int": transpose for n in ("transpose", "transpose_copy")},
    **{f"aten.{n}.default": transpose for n in ("swapaxes", "swapdims")},
    **{f"aten.{n}.default": transpose_2d for n in ("t", "numpy_T")},
    **{f"aten.{n}.default": transpose_matrix for n in ("mT", "adjoint")},
    **{f"aten.movedim.{o}": movedim for o in ("int", "intlist")},
    **{f"aten.{n}.default": expand for n in ("expand", "expand_copy", "broadcast_to", "expand_as")},
    **{f"aten.{n}.Tensor": cut for n in ("slice", "slice_copy")},
    **{f"aten.{n}": narrow for n in ("narrow.default", "narrow.Tensor", "narrow_copy.default")},
    **{f"aten.{n}.int": select for n in ("select", "select_copy")},
    **{f"aten.{n}": split for n in _SPLITS},
    **{f"aten.{n}.int": unbind for n in ("unbind", "unbind_copy")},
    **{f"aten.{n}.default": cat for n in ("cat", "concat", "concatenate")},
    "aten.stack.default": stack,
    **{f"aten.{n}.default": repeat for n in ("repeat", "tile")},
    "aten.repeat_interleave.self_int": repeat_interleave,
    "aten.flip.default": flip,
    "aten.roll.default": roll,
    "aten.pixel_shuffle.default": pixel_shuffle,
    "aten.pixel_unshuffle.default": pixel_unshuffle,
    **{f"aten.meshgrid.{o}": meshgrid for o in ("default", "indexing")},
    "aten.unfold.default": unfold,
    **{f"aten.{n}.default": diagonal for n in ("diagonal", "diagonal_copy")},
    "aten.pad.default": pad,
    "aten.constant_pad_nd.default": constant_pad,
    **{f"aten.reflection_pad{n}d.default": padded_by("reflect") for n in (1, 2, 3)},
    **{f"aten.replication_pad{n}d.default": padded_by("replicate") for n in (1, 2, 3)},
}
