"""Reading and writing at indices.

An index out of range is an error in torch. Here it never reads foreign memory: it gives NaN where elements are
floats, and the nearest element where they are not; a write out of range is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from backends.arguments import Refused, promoted, result_type, shape_of
from backends.tvm.dtypes import axis_of, cast, literal, wide
from backends.tvm.rows import mask_places, masked_write, nonzero
from backends.tvm.scope import Emitter, Kernel, Scope, Tensor, aligned, broadcast
from backends.tvm.views import expanded
from ir import Arg, Dim, Node, Value

_FEW = 16  # places that are compared one by one, instead of being written one by one
_TRUTHS = "truth values cannot be added up; cast to int32 before"
_COMBINE: Mapping[str, Callable[[Any, Any], Any]] = {
    "sum": lambda a, b: a + b, "add": lambda a, b: a + b, "prod": lambda a, b: a * b, "multiply": lambda a, b: a * b,
}  # fmt: skip


def checked(
    t: Any, index: Sequence[Any], axes: Sequence[int], sizes: Sequence[Any], wrap: bool, dtype: torch.dtype
) -> Any:
    """The element at an index whose places on some axes come from data."""
    from tvm import tirx

    places, inside = list(index), []
    for axis, size in zip(axes, sizes, strict=True):
        at = tirx.Cast("int64", places[axis])
        if wrap:
            at = tirx.Select(at < 0, at + size, at)
        inside += [at >= 0, at < size]
        places[axis] = tirx.max(tirx.min(at, size - 1), tirx.const(0, "int64"))
    value = t(*places)
    if dtype not in (torch.float32, torch.float64):
        return value
    return tirx.if_then_else(tirx.all(*inside), value, tirx.const(math.nan, value.ty.dtype))


def taken(s: Scope, x: Tensor, axis: int, index: Tensor, wrap: bool = False) -> Tensor:
    """Slices along a dim, at the places that a tensor of any rank says."""
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])

    def body(k: Kernel, where: Sequence[Any], t: Any, places: Any) -> Any:
        at = places(*where[axis : axis + index.rank])
        full = [*where[:axis], at, *where[axis + index.rank :]]
        return checked(t, full, [axis], [k.dim(x.shape[axis])], wrap, x.dtype)

    return s.compute("take", shape, x.dtype, body, x, index)


def embedding(s: Scope, node: Node, weight: Value, indices: Value, *_: Arg) -> Tensor:
    """Rows of a table."""
    return taken(s, s[weight], 0, s[indices])


def gather(s: Scope, node: Node, x: Value, dim: int, index: Value, *_: Arg) -> Tensor:
    """``aten.gather``."""
    if not x.tensor.rank:
        return s.reshape(s[x], shape_of(node))
    axis = axis_of(x.tensor.rank, dim)

    def body(k: Kernel, where: Sequence[Any], t: Any, places: Any) -> Any:
        full = list(where)
        full[axis] = places(*where)
        return checked(t, full, [axis], [k.dim(x.tensor.shape[axis])], False, x.tensor.dtype)

    return s.compute("gather", shape_of(node), x.tensor.dtype, body, s[x], s[index])


def index_select(s: Scope, node: Node, x: Value, dim: int, index: Value) -> Tensor:
    """Slices along a dim."""
    if not x.tensor.rank:
        return s[x]
    places = s[index] if index.tensor.rank else s.reshape(s[index], (1,))
    return taken(s, s[x], axis_of(x.tensor.rank, dim), places)


def take(s: Scope, node: Node, x: Value, index: Value) -> Tensor:
    """Elements by their place in the flattened tensor."""
    return taken(s, s.reshape(s[x], (x.tensor.numel,)), 0, s[index], wrap=True)


def _positions(s: Scope, indices: Sequence[Arg], count: Callable[[], Dim]) -> tuple[list[int], list[Tensor]]:
    """Dims that are indexed and an index for each; masks become coordinates."""
    dims: list[int] = []
    found: list[Tensor] = []
    dim = 0
    for index in indices:
        if not isinstance(index, Value):
            dim += 1
            continue
        if index.tensor.dtype in (torch.bool, torch.uint8):
            if not index.tensor.rank:
                raise Refused("indexes with a single truth value")
            places = mask_places(s, s.tensor(index, torch.bool), count())
            for axis in range(index.tensor.rank):
                found.append(_column(s, places, axis))
                dims.append(dim + axis)
            dim += index.tensor.rank
        else:
            dims.append(dim)
            found.append(s[index])
            dim += 1
    return dims, found


def _column(s: Scope, places: Tensor, axis: int) -> Tensor:
    return s.compute("column", places.shape[:1], torch.int64, lambda k, i, t: t(i[0], axis), places)


def _new_symbol(s: Scope, node: Node) -> Dim:
    """The size in a result's shape that the data decides."""
    for dim in shape_of(node):
        if not isinstance(dim, int) and dim.is_Symbol and dim.name.startswith("u"):
            return dim
    raise Refused("a number of elements that the data decides, which the result does not show")


def index(s: Scope, node: Node, x: Value, indices: tuple[Arg, ...]) -> Tensor:
    """``x[i, :, j]``: new dims stand where the indices stood, or first when those stood apart."""
    dims, places = _positions(s, indices, lambda: _new_symbol(s, node))
    common = broadcast([p.shape for p in places])
    rest = [d for d in range(x.tensor.rank) if d not in dims]
    together = dims == list(range(dims[0], dims[0] + len(dims)))
    before = dims[0] if together else 0
    unique = list(dict.fromkeys(places))

    def body(k: Kernel, where: Sequence[Any], t: Any, *held: Any) -> Any:
        read = dict(zip(unique, held, strict=True))
        middle = where[before : before + len(common)]
        outer = [*where[:before], *where[before + len(common) :]]
        full: dict[int, Any] = dict(zip(rest, outer, strict=True))
        for dim, place in zip(dims, places, strict=True):
            full[dim] = read[place](*aligned(place.shape, middle))
        sizes = [k.dim(x.tensor.shape[d]) for d in dims]
        return checked(t, [full[d] for d in range(x.tensor.rank)], dims, sizes, True, x.tensor.dtype)

    return s.compute("index", shape_of(node), x.tensor.dtype, body, s[x], *unique)


def index_put(
    s: Scope, node: Node, x: Value, indices: tuple[Arg, ...], values: Value, add: Arg = False, *_: Arg
) -> Tensor:
    """``x[i, j] = v`` on a copy."""
    tensor, value = s[x], s.tensor(values, x.tensor.dtype)
    masks = [i for i in indices if isinstance(i, Value) and i.tensor.dtype in (torch.bool, torch.uint8)]
    if masks:
        first = indices[0]
        if len(indices) != 1 or add or not isinstance(first, Value):
            raise Refused("index_put with a mask among other indices")
        return _put_masked(s, tensor, s.tensor(first, torch.bool), value)
    dims, places = _positions(s, indices, lambda: 0)
    common = broadcast([p.shape for p in places])
    rest = [d for d in range(tensor.rank) if d not in dims]
    before = dims[0] if dims == list(range(dims[0], dims[0] + len(dims))) else 0
    outer = [tensor.shape[d] for d in rest]
    update = expanded(s, value, (*outer[:before], *common, *outer[before:]))

    def place(k: Kernel, where: Sequence[Any], read: Mapping[Tensor, Any]) -> list[Any]:
        middle = where[before : before + len(common)]
        full: dict[int, Any] = dict(zip(rest, [*where[:before], *where[before + len(common) :]], strict=True))
        for dim, tensor_ in zip(dims, places, strict=True):
            full[dim] = read[tensor_][tuple(aligned(tensor_.shape, middle))]
        return [full[d] for d in range(tensor.rank)]

    return written(s, tensor, update, places, dims, place, _COMBINE["sum"] if add else None, wrap=True)


def _put_masked(s: Scope, x: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    """``x[mask] = v``."""
    from tvm import tirx

    width = x.rank - mask.rank
    if value.rank <= width or value.shape[0] == 1:  # one value for all
        wide_mask = s.reshape(mask, (*mask.shape, *[1] * width))
        one = s.reshape(value, value.shape[1:]) if value.rank > width and value.rank else value
        return s.pointwise("where", x.dtype, tirx.Select, [wide_mask, one, x], [torch.bool, x.dtype, x.dtype], x.shape)
    return masked_write(s, x, mask, expanded(s, value, (value.shape[0], *x.shape[mask.rank :])))


def written(
    s: Scope,
    x: Tensor,
    update: Tensor,
    places: Sequence[Tensor],
    axes: Sequence[int],
    place: Callable[[Kernel, Sequence[Any], Mapping[Tensor, Any]], list[Any]],
    combine: Callable[[Any, Any], Any] | None,
    wrap: bool = False,
    shape: Sequence[Dim] | None = None,
) -> Tensor:
    """A copy of ``x`` with updates written into it one after the other: the last of equal places wins."""
    from tvm import tirx
    from tvm.tirx.script.builder import ir as I  # noqa: N812

    if combine is not None and x.dtype == torch.bool:
        raise Refused(_TRUTHS)
    inputs = list(dict.fromkeys([x, update, *places]))

    def build(k: Kernel, *buffers: Any) -> None:
        read = dict(zip(inputs, buffers[:-1], strict=True))
        target = buffers[-1]
        nest(k, x.shape, lambda where: I.buffer_store(target, read[x][tuple(where)], where), parallel=True)

        def write(where: Sequence[Any]) -> None:
            full, inside = place(k, where, read), []
            for axis in axes:
                size, at = k.dim(x.shape[axis]), tirx.Cast("int64", full[axis])
                if wrap:
                    at = tirx.Select(at < 0, at + size, at)
                inside += [at >= 0, at < size]
                full[axis] = at
            value = read[update][tuple(where)]
            if combine is not None:
                inner = wide(x.dtype)
                value = cast(combine(cast(target[tuple(full)], inner), cast(value, inner)), x.dtype)
            with I.If(tirx.all(*inside)), I.Then():
                I.buffer_store(target, value, full)

        nest(k, update.shape if shape is None else shape, write)

    return s.kernel("scatter", build, inputs, [(x.dtype, x.shape)])[0]


def nest(k: Kernel, shape: Sequence[Dim], body: Callable[[list[Any]], None], parallel: bool = False) -> None:
    """Loops over a shape around a body."""
    from tvm import tirx
    from tvm.tirx.script.builder import ir as I  # noqa: N812

    def level(rest: Sequence[Dim], where: list[Any]) -> None:
        if not rest:
            body(where if shape else [tirx.const(0, "int64")] * 0)
            return
        loop = I.parallel if parallel and not where else I.serial
        with loop(tirx.const(0, "int64"), k.dim(rest[0])) as i:
            level(rest[1:], [*where, i])

    level(shape, [])


def _scattered(s: Scope, x: Tensor, axis: int, at: Tensor, source: Tensor, combine: Any) -> Tensor:
    def place(k: Kernel, where: Sequence[Any], read: Mapping[Tensor, Any]) -> list[Any]:
        full = list(where)
        full[axis] = read[at][tuple(where)]
        return full

    # torch reads only as much of the source as there are indices
    return written(s, x, source, [at], [axis], place, combine, shape=at.shape)


def scatter(
    s: Scope, node: Node, x: Value, dim: int, places: Value, source: Arg, reduce: Arg = None, *_: Arg
) -> Tensor:
    """``scatter`` of a tensor or a number, plain or reducing."""
    if not x.tensor.rank:
        raise Refused("scatter into a single number")
    update = s.tensor(source, x.tensor.dtype)
    if not update.rank:
        update = expanded(s, update, places.tensor.shape)
    combine = None if reduce is None else _combine(str(reduce))
    return _scattered(s, s[x], axis_of(x.tensor.rank, dim), s[places], update, combine)


def _combine(name: str) -> Callable[[Any, Any], Any]:
    from backends.tvm.scalars import maximum, minimum

    known = {**_COMBINE, "amax": maximum, "amin": minimum}
    if name not in known:
        raise Refused(f"scatter with the reduction {name}")
    return known[name]


def scatter_add(s: Scope, node: Node, x: Value, dim: int, places: Value, source: Value) -> Tensor:
    """``aten.scatter_add``."""
    return scatter(s, node, x, dim, places, source, "sum")


def scatter_reduce(
    s: Scope, node: Node, x: Value, dim: int, places: Value, source: Value, reduce: str, include_self: Arg = True
) -> Tensor:
    """``aten.scatter_reduce``."""
    if not include_self:
        raise Refused("scatter_reduce without the tensor itself")
    return scatter(s, node, x, dim, places, source, reduce)


def index_add(s: Scope, node: Node, x: Value, dim: int, places: Value, source: Value, alpha: Arg = 1) -> Tensor:
    """``x[i] += alpha * source``."""
    update = s[source]
    if update.dtype == torch.bool:
        raise Refused(_TRUTHS)
    if alpha != 1:
        update = s.pointwise("mul", update.dtype, lambda v, a: v * a, [update, alpha])
    return _along(s, s[x], axis_of(x.tensor.rank, dim), s[places], update, _COMBINE["sum"])


def index_copy(s: Scope, node: Node, x: Value, dim: int, places: Value, source: Value) -> Tensor:
    """``x[i] = source``: the update of a cache."""
    return _along(s, s[x], axis_of(x.tensor.rank, dim), s[places], s[source], None)


def index_fill(s: Scope, node: Node, x: Value, dim: int, places: Value, value: Arg) -> Tensor:
    """``x[i] = number``."""
    axis, at = axis_of(x.tensor.rank, dim), s[places]
    shape = (*x.tensor.shape[:axis], *at.shape, *x.tensor.shape[axis + 1 :])
    return _along(s, s[x], axis, at, expanded(s, s.tensor(value, x.tensor.dtype), shape), None)


def _along(s: Scope, x: Tensor, axis: int, at: Tensor, update: Tensor, combine: Any) -> Tensor:
    from tvm import tirx

    if not at.rank:
        at = s.reshape(at, (1,))
        update = s.reshape(update, (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    few = at.shape[0]
    if combine is None and isinstance(few, int) and few <= _FEW:  # fuses, and runs in parallel

        def body(k: Kernel, where: Sequence[Any], t: Any, places: Any, new: Any) -> Any:
            value = t(*where)
            for number in range(few):
                slot = [*where[:axis], tirx.const(number, "int64"), *where[axis + 1 :]]
                place = tirx.Cast("int64", places(number))
                place = tirx.Select(place < 0, place + k.dim(x.shape[axis]), place)
                value = tirx.if_then_else(place == where[axis], new(*slot), value)
            return value

        return s.compute("index_copy", x.shape, x.dtype, body, x, at, update)

    def place(k: Kernel, where: Sequence[Any], read: Mapping[Tensor, Any]) -> list[Any]:
        full = list(where)
        full[axis] = read[at][(where[axis],)]
        return full

    return written(s, x, update, [at], [axis], place, combine, wrap=True)


def select_scatter(s: Scope, node: Node, x: Value, source: Value, dim: int, at: Arg) -> Tensor:
    """``x[:, i] = source`` on a copy."""
    from tvm import tirx

    axis, where_ = axis_of(x.tensor.rank, dim), s.size(at)

    def body(k: Kernel, index: Sequence[Any], t: Any, new: Any) -> Any:
        place = k.dim(where_)
        if isinstance(where_, int) and where_ < 0:
            place = place + k.dim(x.tensor.shape[axis])
        slot = [i for d, i in enumerate(index) if d != axis]
        return tirx.if_then_else(index[axis] == place, new(*slot), t(*index))

    return s.compute("select_scatter", x.tensor.shape, x.tensor.dtype, body, s[x], s.tensor(source, x.tensor.dtype))


def slice_scatter(
    s: Scope, node: Node, x: Value, source: Value, dim: Arg = 0, start: Arg = None, end: Arg = None, step: Arg = 1
) -> Tensor:
    """``x[a:b:step] = source`` on a copy."""
    from tvm import tirx

    from backends.tvm.views import _clamped

    axis, by = axis_of(x.tensor.rank, dim), s.size(step)
    begin = s.size(start) if start is not None else 0
    update = s.tensor(source, x.tensor.dtype)

    def body(k: Kernel, index: Sequence[Any], t: Any, new: Any) -> Any:
        offset = index[axis] - _clamped(k, begin, x.tensor.shape[axis])
        row = tirx.floordiv(offset, k.dim(by))
        inside = tirx.all(offset >= 0, tirx.floormod(offset, k.dim(by)) == 0, row < k.dim(update.shape[axis]))
        slot = [row if d == axis else i for d, i in enumerate(index)]
        return tirx.if_then_else(inside, new(*slot), t(*index))

    return s.compute("slice_scatter", x.tensor.shape, x.tensor.dtype, body, s[x], update)


def places_of(s: Scope, node: Node, x: Value) -> Tensor:
    """Coordinates of what is not zero, one a row."""
    return nonzero(s, s[x], _new_symbol(s, node))


def places_tuple(s: Scope, node: Node, x: Value) -> list[Tensor]:
    """Coordinates, a vector per dim."""
    found = nonzero(s, s[x], _new_symbol(s, node))
    return [_column(s, found, axis) for axis in range(len(node.results))]


def masked_select(s: Scope, node: Node, x: Value, mask: Value) -> Tensor:
    """Elements where a mask is true, as a vector."""
    shape = broadcast([x.tensor.shape, mask.tensor.shape])
    tensor, chosen = expanded(s, s[x], shape), expanded(s, s[mask], shape)
    total = math.prod(shape) if shape else 1
    flat, truth = s.reshape(tensor, (total,)), s.reshape(chosen, (total,))
    found = mask_places(s, truth, _new_symbol(s, node))
    return taken(s, flat, 0, _column(s, found, 0))


def searchsorted(s: Scope, node: Node, edges: Value, x: Value, *args: Arg) -> Tensor:
    """How many edges of one sorted vector lie below each element."""
    from tvm import te

    right = bool(args[1]) if len(args) > 1 else False
    if edges.tensor.rank != 1 or (len(args) > 2 and (args[2] is not None or args[3] is not None)):
        raise Refused("searchsorted with several rows, a side or a sorter")
    dtype, out = promoted(x, edges), result_type(node)
    tensors = [s[edges], s[x]]

    def build(k: Kernel, sides: Any, t: Any) -> Any:
        loop = te.reduce_axis((literal(0, torch.int64), k.dim(edges.tensor.shape[0])), name="r")

        def element(*where: Any) -> Any:
            edge, value = cast(sides(loop.var), dtype), cast(t(*where), dtype)
            return te.sum(cast(edge <= value if right else edge < value, out), axis=loop)

        return te.compute(k.shape(shape_of(node)), element, name="searchsorted")

    return s.te("searchsorted", build, tensors, [(out, shape_of(node))])[0]


def bucketize(s: Scope, node: Node, x: Value, edges: Value, out_int32: Arg = False, right: Arg = False) -> Tensor:
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
    "aten.nonzero.default": places_of,
    "aten.nonzero_numpy.default": places_tuple,
    "aten.masked_select.default": masked_select,
    "aten.searchsorted.Tensor": searchsorted,
    "aten.bucketize.Tensor": bucketize,
}
