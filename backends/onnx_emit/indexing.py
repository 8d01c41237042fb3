"""Reading and writing at indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from backends.arguments import Refused, promoted, result_type, shape_of
from backends.onnx_emit.create import count
from backends.onnx_emit.dtypes import axis_of
from backends.onnx_emit.pointwise import Emitter, choose
from backends.onnx_emit.scope import LONGEST, Scope
from backends.onnx_emit.views import expand_to
from ir import Arg, Node, Value

_I64 = torch.int64
_REDUCTIONS = {"sum": "add", "add": "add", "prod": "mul", "multiply": "mul", "amax": "max", "amin": "min"}


def embedding(s: Scope, node: Node, weight: Value, indices: Value, *_: Arg) -> str:
    """Rows of a table."""
    return s.op("Gather", s[weight], s[indices], axis=0)


def gather(s: Scope, node: Node, x: Value, dim: int, index: Value, *_: Arg) -> str:
    """``aten.gather``."""
    if not x.tensor.rank:
        raise Refused("gather from a single number")
    return s.op("GatherElements", s[x], s[index], axis=axis_of(x, dim))


def index_select(s: Scope, node: Node, x: Value, dim: int, index: Value) -> str:
    """Slices along a dim."""
    if not x.tensor.rank:
        return s[x]
    places = s[index] if index.tensor.rank else s.op("Unsqueeze", s[index], s.ints(0))
    return s.op("Gather", s[x], places, axis=axis_of(x, dim))


def take(s: Scope, node: Node, x: Value, index: Value) -> str:
    """Elements by their place in the flattened tensor."""
    return s.op("Gather", s.op("Reshape", s[x], s.ints(-1)), s[index], axis=0)


def _positions(s: Scope, x: Value, indices: Sequence[Arg]) -> tuple[list[int], list[str], list[int]]:
    """Dims that are indexed, an int64 index for each, and the rank of each; masks become coordinates."""
    dims: list[int] = []
    names: list[str] = []
    ranks: list[int] = []
    dim = 0
    for index in indices:
        if not isinstance(index, Value):
            dim += 1
            continue
        type_ = index.tensor
        if type_.dtype in (torch.bool, torch.uint8):
            if not type_.rank:
                raise Refused("indexes with a single truth value")
            found = s.op("NonZero", s.tensor(index, torch.bool))
            for axis in range(type_.rank):
                names.append(s.op("Gather", found, s.const(axis, _I64), axis=0))
                dims.append(dim + axis)
                ranks.append(1)
            dim += type_.rank
        else:
            dims.append(dim)
            names.append(s.cast(s[index], type_.dtype, _I64))
            ranks.append(type_.rank)
            dim += 1
    return dims, names, ranks


def _together(s: Scope, names: list[str], ranks: list[int]) -> str:
    """Indices broadcast to one shape and stacked on a new last dim."""
    rank = max(ranks)
    shape = None
    if len(names) > 1:
        total = names[0]
        for name in names[1:]:  # a sum has the shape that all broadcast to
            total = s.op("Add", total, name)
        shape = s.op("Shape", total)
    spread = [n if shape is None else s.op("Expand", n, shape) for n in names]
    columns = [s.op("Unsqueeze", n, s.ints(rank)) for n in spread]
    return columns[0] if len(columns) == 1 else s.op("Concat", *columns, axis=rank)


def index(s: Scope, node: Node, x: Value, indices: tuple[Arg, ...]) -> str:
    """``x[i, :, j]``: new dims stand where the indices stood, or first when those stood apart."""
    dims, names, ranks = _positions(s, x, indices)
    if len(dims) == 1:
        return s.op("Gather", s[x], names[0], axis=dims[0])
    rank, new = x.tensor.rank, max(ranks)
    rest = [d for d in range(rank) if d not in dims]
    moved = s.transpose(s[x], [*dims, *rest])
    made = s.op("GatherND", moved, _together(s, names, ranks))
    if dims == list(range(dims[0], dims[0] + len(dims))) and dims[0]:
        before = dims[0]
        order = [new + i for i in range(before)] + list(range(new)) + [new + i for i in range(before, len(rest))]
        made = s.transpose(made, order)
    return made


def index_put(
    s: Scope, node: Node, x: Value, indices: tuple[Arg, ...], values: Value, add: Arg = False, *_: Arg
) -> str:
    """``x[i, j] = v`` on a copy."""
    first = indices[0]
    masked = len(indices) == 1 and isinstance(first, Value) and first.tensor.dtype == torch.bool
    value = s.tensor(values, x.tensor.dtype)
    if masked and isinstance(first, Value) and values.tensor.numel == 1 and not add:
        mask = s[first]
        for _axis in range(x.tensor.rank - first.tensor.rank):
            mask = s.op("Unsqueeze", mask, s.ints(-1))
        return choose(s, mask, s.op("Reshape", value, s.ints()), s[x], x.tensor.dtype)
    dims, names, ranks = _positions(s, x, indices)
    rank = x.tensor.rank
    order = [*dims, *(d for d in range(rank) if d not in dims)]
    new, width = max(ranks), rank - len(dims)
    contiguous = dims == list(range(dims[0], dims[0] + len(dims)))
    if contiguous and dims[0] and values.tensor.rank > width - dims[0]:
        raise Refused("index_put below the first dim with values of several dims; write it as scatter")
    moved, places = s.transpose(s[x], order), _together(s, names, ranks)
    lead = s.op("Slice", s.op("Shape", places), s.ints(0), s.ints(new))
    tail = s.op("Slice", s.op("Shape", moved), s.ints(len(dims)), s.ints(LONGEST)) if width else None
    updates = s.op("Expand", value, s.op("Concat", lead, tail, axis=0) if tail else lead)
    made = s.op("ScatterND", moved, places, updates, reduction="add" if add else None)
    return s.transpose(made, [order.index(d) for d in range(rank)])


def scatter(s: Scope, node: Node, x: Value, dim: int, places: Value, source: Arg, reduce: Arg = None, *_: Arg) -> str:
    """``scatter`` of a tensor or a number, plain or reducing."""
    if not x.tensor.rank:
        raise Refused("scatter into a single number")
    if isinstance(source, Value) and source.tensor.rank:
        updates = s.tensor(source, x.tensor.dtype)
        for axis, (have, want) in enumerate(zip(source.tensor.shape, places.tensor.shape, strict=True)):
            if have != want:  # torch reads only as much of the source as there are indices
                updates = s.op("Slice", updates, s.ints(0), s.size_of(places, axis), s.ints(axis))
    else:
        updates = s.op("Expand", s.tensor(source, x.tensor.dtype), s.sizes_of(places))
    how = None if reduce is None else _REDUCTIONS.get(str(reduce))
    if reduce is not None and how is None:
        raise Refused(f"scatter with reduction {reduce}")
    return s.op("ScatterElements", s[x], s[places], updates, axis=axis_of(x, dim), reduction=how)


def scatter_add(s: Scope, node: Node, x: Value, dim: int, places: Value, source: Value) -> str:
    """``scatter_add``."""
    return scatter(s, node, x, dim, places, source, "sum")


def scatter_reduce(
    s: Scope, node: Node, x: Value, dim: int, places: Value, source: Value, reduce: Arg, include: Arg = True
) -> str:
    """``scatter_reduce`` that includes what was there."""
    if not include:
        raise Refused("scatter_reduce with include_self=False")
    return scatter(s, node, x, dim, places, source, reduce)


def _spread_index(s: Scope, index_: Value, source: Value, axis: int) -> str:
    """A vector of places as an index of the source's shape."""
    pattern = [1] * source.tensor.rank
    pattern[axis] = -1
    wide = s.op("Reshape", s.cast(s[index_], index_.tensor.dtype, _I64), s.ints(*pattern))
    return s.op("Expand", wide, s.sizes_of(source))


def index_add(s: Scope, node: Node, x: Value, dim: int, index_: Value, source: Value, alpha: Arg = 1) -> str:
    """Add slices at places."""
    axis = axis_of(x, dim)
    updates = s[source] if alpha == 1 else s.op("Mul", s[source], s.tensor(alpha, x.tensor.dtype))
    return s.op("ScatterElements", s[x], _spread_index(s, index_, source, axis), updates, axis=axis, reduction="add")


def index_copy(s: Scope, node: Node, x: Value, dim: int, index_: Value, source: Value) -> str:
    """Write slices at places: how a static cache takes new keys, and how live rows come back."""
    axis = axis_of(x, dim)
    if not axis and x.tensor.rank:  # whole rows, each copied in one piece
        places = s.op("Reshape", s.cast(s[index_], index_.tensor.dtype, _I64), s.ints(-1, 1))
        return s.op("ScatterND", s[x], places, s.tensor(source, x.tensor.dtype))
    return s.op("ScatterElements", s[x], _spread_index(s, index_, source, axis), s[source], axis=axis)


def index_fill(s: Scope, node: Node, x: Value, dim: int, index_: Value, value: Arg) -> str:
    """Write one number into slices."""
    axis = axis_of(x, dim)
    hit = s.op(
        "Equal",
        s.op("Unsqueeze", count(s, s.size_of(x, axis)), s.ints(1)),
        s.op("Reshape", s[index_], s.ints(1, -1)),
    )
    hit = s.cast(
        s.op("ReduceMax", s.cast(hit, torch.bool, torch.int32), s.ints(1), keepdims=0),
        torch.int32,
        torch.bool,
    )
    hit = s.op("Reshape", hit, s.ints(-1, *[1] * (x.tensor.rank - axis - 1)))
    return choose(s, hit, s.tensor(value, x.tensor.dtype), s[x], x.tensor.dtype)


def select_scatter(s: Scope, node: Node, x: Value, source: Value, dim: int, at: Arg) -> str:
    """``x`` with one slice replaced."""
    axis = axis_of(x, dim)
    places = s.vector([at])
    size = s.size_of(x, axis)
    places = s.op("Where", s.op("Less", places, s.ints(0)), s.op("Add", places, size), places)
    hit = s.op("Equal", count(s, size), places)
    hit = s.op("Reshape", hit, s.ints(-1, *[1] * (x.tensor.rank - axis - 1)))
    inserted = s.op("Unsqueeze", s.tensor(source, x.tensor.dtype), s.ints(axis))
    return choose(s, hit, inserted, s[x], x.tensor.dtype)


def slice_scatter(
    s: Scope,
    node: Node,
    x: Value,
    source: Value,
    dim: Arg = 0,
    start: Arg = None,
    end: Arg = None,
    step: Arg = 1,
) -> str:
    """``x`` with a range replaced: the places are what the same slice of ``0 .. size - 1`` gives."""
    assert isinstance(dim, int)
    axis = axis_of(x, dim)
    updates = s.tensor(source, x.tensor.dtype)
    if (start is None or start == 0) and (end is None or end == LONGEST) and step == 1:
        return expand_to(s, updates, source.tensor.shape, x.tensor.shape)
    numbers = count(s, s.size_of(x, axis))
    places = s.op(
        "Slice", numbers, s.vector([0 if start is None else start]), s.vector([LONGEST if end is None else end]),
        s.ints(0), s.vector([step]),
    )  # fmt: skip
    pattern = [1] * x.tensor.rank
    pattern[axis] = -1
    wide = s.op("Expand", s.op("Reshape", places, s.ints(*pattern)), s.sizes_of(source))
    return s.op("ScatterElements", s[x], wide, updates, axis=axis)


def nonzero(s: Scope, node: Node, x: Value) -> str:
    """Coordinates of what is not zero, one a row."""
    if not x.tensor.rank:
        raise Refused("the place of a single number")
    return s.op("Transpose", s.op("NonZero", s.tensor(x, torch.bool)), perm=[1, 0])


def nonzero_tuple(s: Scope, node: Node, x: Value) -> tuple[str, ...]:
    """Coordinates, a vector per dim."""
    if not x.tensor.rank:
        raise Refused("the place of a single number")
    found = s.op("NonZero", s.tensor(x, torch.bool))
    return tuple(s.op("Gather", found, s.const(i, _I64), axis=0) for i in range(len(node.results)))


def masked_select(s: Scope, node: Node, x: Value, mask: Value) -> str:
    """Elements where a mask is true, as a vector."""
    name, chosen = s[x], s[mask]
    if x.tensor.shape != mask.tensor.shape:
        number = s.op("Where", chosen, s.const(1, _I64), s.const(0, _I64))
        zero = s.op("Cast", s.op("Shape", name), to=7)
        ones = s.op("Expand", s.const(0, _I64), zero)
        shape = s.op("Shape", s.op("Add", number, ones))
        name, chosen = s.op("Expand", name, shape), s.op("Expand", chosen, shape)
    places = s.op("NonZero", s.op("Reshape", chosen, s.ints(-1)))
    flat = s.op("Reshape", name, s.ints(-1))
    return s.op("Gather", flat, s.op("Reshape", places, s.ints(-1)), axis=0)


def diagonal(s: Scope, node: Node, x: Value, offset: int = 0, first: int = 0, second: int = 1) -> str:
    """The diagonal of a plane as the last dim."""
    rank = x.tensor.rank
    a, b = first % rank, second % rank
    rest = [d for d in range(rank) if d not in (a, b)]
    length = shape_of(node)[-1]
    if not isinstance(length, int):
        raise Refused("a diagonal of dynamic length")
    rows = torch.arange(length) + max(-offset, 0)
    places = torch.stack([rows, rows - max(-offset, 0) + max(offset, 0)], 1)
    made = s.op("GatherND", s.transpose(s[x], [a, b, *rest]), s.const(places, _I64))
    return s.transpose(made, [*range(1, rank - 1), 0])


def searchsorted(s: Scope, node: Node, edges: Value, x: Value, *args: Arg) -> str:
    """How many edges of one sorted vector lie below each element."""
    right = bool(args[1]) if len(args) > 1 else False
    if edges.tensor.rank != 1 or (len(args) > 2 and (args[2] is not None or args[3] is not None)):
        raise Refused("searchsorted with several rows, a side or a sorter")
    dtype = promoted(x, edges)
    below = s.op(
        "LessOrEqual" if right else "Less",
        s.tensor(edges, dtype),
        s.op("Unsqueeze", s.tensor(x, dtype), s.ints(-1)),
    )
    made = s.op("ReduceSum", s.cast(below, torch.bool, _I64), s.ints(-1), keepdims=0)
    return s.cast(made, _I64, result_type(node))


def bucketize(s: Scope, node: Node, x: Value, edges: Value, out_int32: Arg = False, right: Arg = False) -> str:
    """``searchsorted`` with its operands swapped."""
    return searchsorted(s, node, edges, x, out_int32, right)


INDEXING: Mapping[str, Emitter] = {
    "aten.embedding.default": embedding,
    "aten.gather.default": gather,
    "aten.index_select.default": index_select,
    "aten.take.default": take,
    **{f"aten.{n}.Tensor": index for n in ("index", "_unsafe_index")},
    **{f"aten.{n}.default": index_put for n in ("index_put", "_unsafe_index_put")},
    **{f"aten.scatter.{o}": scatter for o in ("src", "value", "reduce", "value_reduce")},
    "aten.scatter_add.default": scatter_add,
    "aten.scatter_reduce.two": scatter_reduce,
    "aten.index_add.default": index_add,
    "aten.index_copy.default": index_copy,
    "aten.index_fill.int_Scalar": index_fill,
    "aten.index_fill.int_Tensor": index_fill,
    "aten.select_scatter.default": select_scatter,
    "aten.slice_scatter.default": slice_scatter,
    "aten.nonzero.default": nonzero,
    "aten.nonzero_numpy.default": nonzero_tuple,
    "aten.masked_select.default": masked_select,
    **{f"aten.{n}.default": diagonal for n in ("diagonal", "diagonal_copy")},
    "aten.searchsorted.Tensor": searchsorted,
    "aten.bucketize.Tensor": bucketize,
}
