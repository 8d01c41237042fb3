"""Shapes: views, permutations, slices, joins. No arithmetic on elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from backends.arguments import Refused, moved_dims, shape_of, widest
from backends.onnx_emit.dtypes import axis_of
from backends.onnx_emit.pointwise import Emitter
from backends.onnx_emit.scope import LONGEST, Scope
from ir import Arg, Dim, Node, TensorType, Value

_I64 = torch.int64


def nothing(s: Scope, node: Node, x: Value, *_: Arg) -> str:
    """The operand itself."""
    return s[x]


def reshape(s: Scope, node: Node, x: Value, size: Sequence[Arg] = (), *_: Arg) -> str:
    """Every spelling of a view that keeps the order of elements: the result's type says the shape."""
    given = size if isinstance(size, tuple) else ()
    return s.reshape(s[x], x.tensor.shape, shape_of(node), given)


def reshape_alike(s: Scope, node: Node, x: Value, like: Value) -> str:
    """``view_as``, ``reshape_as``."""
    want = shape_of(node)
    if sum(not isinstance(d, int) for d in want) <= 1:
        return s.reshape(s[x], x.tensor.shape, want)
    return s.op("Reshape", s[x], s.sizes_of(like))


def unflatten(s: Scope, node: Node, x: Value, dim: int, sizes: tuple[Arg, ...]) -> str:
    """One dim becomes several."""
    rank = x.tensor.rank
    at = dim % rank
    want = shape_of(node)
    given: list[Arg] = [-2] * at + list(sizes) + [-2] * (rank - at - 1)
    return s.reshape(s[x], x.tensor.shape, want, tuple(given))


def unsqueeze(s: Scope, node: Node, x: Value, dim: int) -> str:
    """A new dim of one."""
    return s.op("Unsqueeze", s[x], s.ints(dim % (x.tensor.rank + 1)))


def squeeze(s: Scope, node: Node, x: Value, dims: Arg = None) -> str:
    """Drop dims of one: those that the types know to be one."""
    rank = x.tensor.rank
    if dims is None:
        asked: Sequence[Any] = range(rank)
    else:
        asked = dims if isinstance(dims, tuple) else (dims,)
    axes = sorted({int(d) % rank for d in asked if rank and x.tensor.shape[int(d) % rank] == 1})
    return s.op("Squeeze", s[x], s.ints(*axes)) if axes else s[x]


def permute(s: Scope, node: Node, x: Value, dims: tuple[int, ...]) -> str:
    """``aten.permute``."""
    return s.transpose(s[x], [d % x.tensor.rank for d in dims])


def transpose(s: Scope, node: Node, x: Value, a: int, b: int) -> str:
    """Swap two dims."""
    order = list(range(x.tensor.rank))
    if order:
        order[a], order[b] = order[b], order[a]
    return s.transpose(s[x], order)


def transpose_2d(s: Scope, node: Node, x: Value) -> str:
    """``aten.t``, ``aten.numpy_T``."""
    return s.transpose(s[x], list(range(x.tensor.rank))[::-1])


def transpose_matrix(s: Scope, node: Node, x: Value) -> str:
    """``x.mT``."""
    return transpose(s, node, x, -1, -2)


def movedim(s: Scope, node: Node, x: Value, source: Arg, destination: Arg) -> str:
    """``aten.movedim``."""
    return s.transpose(s[x], moved_dims(x.tensor.rank, source, destination))


def expand(s: Scope, node: Node, x: Value, size: Sequence[Arg], *_: Arg) -> str:
    """Repeat dims of one; a size that the types know to be kept is written as 1, which ONNX keeps."""
    return expand_to(s, s[x], x.tensor.shape, shape_of(node), tuple(size))


def expand_alike(s: Scope, node: Node, x: Value, like: Value) -> str:
    """``expand_as``."""
    want = shape_of(node)
    if x.tensor.shape == want:
        return s[x]
    return s.op("Expand", s[x], s.sizes_of(like))


def expand_to(s: Scope, name: str, have: Sequence[Dim], want: Sequence[Dim], given: Sequence[Arg] = ()) -> str:
    """Broadcast to a shape; ``given`` are the sizes as the model said them."""
    if tuple(have) == tuple(want):
        return name
    padded = [1] * (len(want) - len(have)) + list(have)
    parts = []
    for index, (old, new) in enumerate(zip(padded, want, strict=True)):
        size = given[index] if index < len(given) else None
        if old == new:
            parts.append(s.ints(1))
        elif isinstance(new, int):
            parts.append(s.ints(new))
        else:
            parts.append(s.vector([size]) if isinstance(size, Value) else s.dim(new))
    if len(have) == len(want) and all(s.is_constant(p) and s.literal(p) == [1] for p in parts):
        return name
    return s.op("Expand", name, s.join(parts))


def cut(s: Scope, node: Node, x: Value, dim: Arg = 0, start: Arg = None, end: Arg = None, step: Arg = 1) -> str:
    """``aten.slice``: ONNX clamps bounds and counts from the end just as torch does."""
    if (start is None or start == 0) and (end is None or end == LONGEST) and step == 1:
        return s[x]
    last = LONGEST if end is None else end
    assert isinstance(dim, int)
    axis = s.ints(axis_of(x, dim))
    strides = None if step == 1 else s.vector([step])
    return s.op("Slice", s[x], s.vector([0 if start is None else start]), s.vector([last]), axis, strides)


def narrow(s: Scope, node: Node, x: Value, dim: int, start: Arg, length: Arg) -> str:
    """``length`` elements from ``start``."""
    axis = axis_of(x, dim)
    begin = s.vector([start])
    if (isinstance(start, Value) and isinstance(start.type, TensorType)) or (isinstance(start, int) and start < 0):
        size = s.size_of(x, axis)
        begin = s.op("Where", s.op("Less", begin, s.ints(0)), s.op("Add", begin, size), begin)
    if s.is_constant(begin) and isinstance(length, int):
        stop = s.ints(s.literal(begin)[0] + length)
    else:
        stop = s.op("Add", begin, s.vector([length]))
    return s.op("Slice", s[x], begin, stop, s.ints(axis))


def select(s: Scope, node: Node, x: Value, dim: int, index: Arg) -> str:
    """One slice, the dim dropped."""
    axis = axis_of(x, dim)
    at = s.const(index, _I64) if isinstance(index, int) else s.tensor(index, _I64)
    return s.op("Gather", s[x], at, axis=axis)


def split(s: Scope, node: Node, x: Value, sizes: Arg, dim: int = 0) -> tuple[str, ...]:
    """``split``, ``chunk``, ``split_with_sizes``: the results' types say the sizes."""
    axis = axis_of(x, dim)
    parts = [v.tensor.shape[axis] for v in node.results]
    if len(parts) == 1:
        return (s[x],)
    if all(isinstance(p, int) for p in parts):
        lengths = s.ints(*parts)
    elif isinstance(sizes, tuple):
        lengths = s.vector(sizes)
    else:
        lengths = s.join([s.dim(p) for p in parts])
    return s.ops("Split", len(parts), s[x], lengths, axis=axis)


def unbind(s: Scope, node: Node, x: Value, dim: int = 0) -> tuple[str, ...]:
    """Every slice along a dim."""
    return tuple(s.op("Gather", s[x], s.const(i, _I64), axis=axis_of(x, dim)) for i in range(len(node.results)))


def cat(s: Scope, node: Node, tensors: tuple[Value, ...], dim: int = 0) -> str:
    """Join; an empty vector among tensors of another rank is skipped, as torch still does."""
    rank = node.results[0].tensor.rank
    kept = [t for t in tensors if t.tensor.rank == rank] or list(tensors)
    dtype = widest(tuple(t.tensor.dtype for t in tensors))
    names = [s.tensor(t, dtype) for t in kept]
    return names[0] if len(names) == 1 else s.op("Concat", *names, axis=dim % rank)


def stack(s: Scope, node: Node, tensors: tuple[Value, ...], dim: int = 0) -> str:
    """Join along a new dim."""
    at = dim % node.results[0].tensor.rank
    dtype = widest(tuple(t.tensor.dtype for t in tensors))
    return s.op("Concat", *(s.op("Unsqueeze", s.tensor(t, dtype), s.ints(at)) for t in tensors), axis=at)


def repeat(s: Scope, node: Node, x: Value, repeats: tuple[Arg, ...]) -> str:
    """``aten.repeat``, ``aten.tile``."""
    missing = len(repeats) - x.tensor.rank
    name = s[x]
    if missing > 0:
        name = s.op("Unsqueeze", name, s.ints(*range(missing)))
    elif missing < 0:
        repeats = (1,) * -missing + tuple(repeats)
    return s.op("Tile", name, s.vector(repeats))


def repeat_interleave(s: Scope, node: Node, x: Value, repeats: Arg, dim: Arg = None, *_: Arg) -> str:
    """Each element ``repeats`` times, the same number for all."""
    shape: tuple[Dim, ...] = x.tensor.shape
    name, axis = s[x], dim
    if dim is None:
        total = x.tensor.numel
        name, axis, shape = s.op("Reshape", name, s.ints(-1)), 0, (total,)
    assert isinstance(axis, int)
    axis %= len(shape)
    wide = s.op("Unsqueeze", name, s.ints(axis + 1))
    pattern: list[Arg] = [1] * (len(shape) + 1)
    pattern[axis + 1] = repeats
    wide = s.op("Expand", wide, s.vector(pattern))
    times: Any = shape_of(node)[axis]
    symbolic = [*shape[:axis], times, *shape[axis + 1 :]]
    entries = [d if isinstance(d, int) else 0 if i < axis else None for i, d in enumerate(symbolic)]
    if entries.count(None) <= 1:
        return s.op("Reshape", wide, s.ints(*(-1 if e is None else e for e in entries)))
    after = s.op("Shape", name, start=axis + 1) if axis + 1 < len(shape) else None
    parts = [s.op("Shape", name, start=0, end=axis) if axis else None, s.ints(-1), after]
    return s.op("Reshape", wide, s.join([p for p in parts if p]))


def flip(s: Scope, node: Node, x: Value, dims: tuple[int, ...]) -> str:
    """Reverse dims."""
    if not dims:
        return s[x]
    axes = [d % x.tensor.rank for d in dims]
    count = len(axes)
    return s.op(
        "Slice",
        s[x],
        s.ints(*[-1] * count),
        s.ints(*[-LONGEST] * count),
        s.ints(*axes),
        s.ints(*[-1] * count),
    )


def roll(s: Scope, node: Node, x: Value, shifts: Arg, dims: Arg = ()) -> str:
    """Move elements around; what leaves at the end enters at the start."""
    moves = shifts if isinstance(shifts, tuple) else (shifts,)
    axes = dims if isinstance(dims, tuple) else (dims,)
    name, shape = s[x], x.tensor.shape
    if not axes:
        name = s.op("Reshape", name, s.ints(-1))
    for index, by in enumerate(moves):
        axis = int(axes[index]) % x.tensor.rank if axes else 0
        if not isinstance(by, int):
            raise Refused("rolls by a size; roll by a number")
        size = shape[axis] if axes else x.tensor.numel
        if isinstance(size, int):
            by = by % size if size else 0
        elif abs(by) != 1:
            raise Refused("rolls a dynamic dim by more than one")
        if by:
            tail = s.op("Slice", name, s.ints(-by), s.ints(LONGEST), s.ints(axis))
            head = s.op("Slice", name, s.ints(0), s.ints(-by), s.ints(axis))
            name = s.op("Concat", tail, head, axis=axis)
    return name if axes else s.op("Reshape", name, s.sizes_of(x))


def pixel_shuffle(s: Scope, node: Node, x: Value, factor: int) -> str:
    """Channels to space, torch's order."""
    if x.tensor.dtype in (torch.float32, torch.float16):
        return s.op("DepthToSpace", s[x], blocksize=factor, mode="CRD")
    shape = s.join([s.ints(-1), s.ints(shape_of(node)[-3], factor, factor), s.size_of(x, -2), s.size_of(x, -1)])
    apart = s.transpose(s.op("Reshape", s[x], shape), (0, 1, 4, 2, 5, 3))
    rows, columns = (s.op("Mul", s.size_of(x, axis), s.ints(factor)) for axis in (-2, -1))
    lead = [s.size_of(x, axis) for axis in range(x.tensor.rank - 3)]
    return s.op("Reshape", apart, s.join([*lead, s.ints(shape_of(node)[-3]), rows, columns]))


def meshgrid(s: Scope, node: Node, tensors: tuple[Value, ...], indexing: Arg = "ij") -> tuple[str, ...]:
    """A grid from vectors."""
    count = len(tensors)
    order = list(range(count))
    if indexing == "xy" and count > 1:
        order[0], order[1] = 1, 0
    sizes = [s.size_of(t, 0) if t.tensor.rank else s.ints(1) for t in tensors]
    shape = s.join([sizes[order.index(i)] for i in range(count)])
    grids = []
    for index, tensor in enumerate(tensors):
        pattern = [1] * count
        pattern[order[index]] = -1
        grids.append(s.op("Expand", s.op("Reshape", s[tensor], s.ints(*pattern)), shape))
    return tuple(grids)


def unfold(s: Scope, node: Node, x: Value, dim: int, size: int, step: int) -> str:
    """Sliding windows along a dim, each as a new last dim."""
    rank = x.tensor.rank
    axis = axis_of(x, dim)
    count = s.op("Div", s.op("Sub", s.size_of(x, axis), s.ints(size)), s.ints(step))
    starts = s.op(
        "Range", s.const(0, _I64), s.op("Squeeze", s.op("Add", count, s.ints(1)), s.ints(0)), s.const(1, _I64)
    )
    starts = s.op("Unsqueeze", s.op("Mul", starts, s.const(step, _I64)), s.ints(1))
    places = s.op("Add", starts, s.ints(*range(size)))
    windows = s.op("Gather", s[x], places, axis=axis)
    order = [d for d in range(rank + 1) if d != axis + 1] + [axis + 1]
    return s.transpose(windows, order)


VIEWS: Mapping[str, Emitter] = {
    **{
        f"aten.{name}": reshape
        for name in (
            "reshape.default", "view.default", "_unsafe_view.default", "flatten.using_ints", "view_copy.default",
            "ravel.default", "_reshape_alias.default",
        )
    },
    **{f"aten.{n}.default": reshape_alike for n in ("view_as", "reshape_as")},
    "aten.unflatten.int": unflatten,
    "aten.unsqueeze.default": unsqueeze,
    "aten.unsqueeze_copy.default": unsqueeze,
    **{f"aten.squeeze.{o}": squeeze for o in ("default", "dim", "dims")},
    **{f"aten.{n}.default": permute for n in ("permute", "permute_copy")},
    **{f"aten.{n}.int": transpose for n in ("transpose", "transpose_copy")},
    **{f"aten.{n}.default": transpose for n in ("swapaxes", "swapdims")},
    **{f"aten.{n}.default": transpose_2d for n in ("t", "numpy_T")},
    **{f"aten.{n}.default": transpose_matrix for n in ("mT", "adjoint")},
    **{f"aten.movedim.{o}": movedim for o in ("int", "intlist")},
    **{f"aten.{n}.default": expand for n in ("expand", "expand_copy", "broadcast_to")},
    "aten.expand_as.default": expand_alike,
    **{f"aten.{n}.Tensor": cut for n in ("slice", "slice_copy")},
    **{f"aten.{n}": narrow for n in ("narrow.default", "narrow.Tensor", "narrow_copy.default")},
    **{f"aten.{n}.int": select for n in ("select", "select_copy")},
    **{
        f"aten.{n}": split
        for n in ("split.Tensor", "split.sizes", "split_with_sizes.default", "chunk.default", "tensor_split.sections",
                  "split_copy.Tensor", "split_with_sizes_copy.default", "unsafe_split.Tensor", "unsafe_chunk.default",
                  "unsafe_split_with_sizes.default")
    },
    **{f"aten.{n}.int": unbind for n in ("unbind", "unbind_copy")},
    **{f"aten.{n}.default": cat for n in ("cat", "concat", "concatenate")},
    "aten.stack.default": stack,
    **{f"aten.{n}.default": repeat for n in ("repeat", "tile")},
    "aten.repeat_interleave.self_int": repeat_interleave,
    "aten.flip.default": flip,
    "aten.roll.default": roll,
    "aten.pixel_shuffle.default": pixel_shuffle,
    **{f"aten.meshgrid.{o}": meshgrid for o in ("default", "indexing")},
    "aten.unfold.default": unfold,
}  # fmt: skip
