"""Sums, means, extremes, truth over dims; softmax; sorting and counting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from backends.arguments import Refused, number, result_type, shape_of, spread_over
from backends.tvm.dtypes import axis_of, cast, literal, wide
from backends.tvm.scalars import constant, is_infinite, is_nan, maximum, minimum
from backends.tvm.scope import Emitter, Kernel, Scope, Tensor
from ir import Arg, Dim, Node, Value


def axes_of(rank: int, dim: Arg) -> list[int]:
    """Dims to reduce, counted from the start; all of them for ``None`` or none."""
    if dim is None or dim == ():
        return list(range(rank))
    return sorted(axis_of(rank, d) for d in (dim if isinstance(dim, tuple) else (dim,))) if rank else []


def reduced(shape: Sequence[Dim], axes: Sequence[int], keep: bool) -> tuple[Dim, ...]:
    """The shape that is left."""
    if keep:
        return tuple(1 if d in axes else n for d, n in enumerate(shape))
    return tuple(n for d, n in enumerate(shape) if d not in axes)


def fold(
    s: Scope,
    name: str,
    x: Tensor,
    axes: Sequence[int],
    keep: bool,
    dtype: torch.dtype,
    how: str,
    f: Callable[[Any], Any] = lambda v: v,
    within: torch.dtype | None = None,
) -> Tensor:
    """Reduce dims: ``how`` is sum, prod, max, min (NaN wins) or plain_max (for softmax); ``f`` of each element."""
    from tvm import te

    inner = wide(within or dtype)
    shape = reduced(x.shape, axes, keep)
    if not axes:
        return s.pointwise(name, dtype, f, [x], inner)

    def build(k: Kernel, t: Any) -> Any:
        loops = {d: te.reduce_axis((literal(0, torch.int64), k.dim(x.shape[d])), name=f"r{d}") for d in axes}

        def element(*index: Any) -> Any:
            rest = iter(index) if not keep else iter([i for d, i in enumerate(index) if d not in axes])
            places = [loops[d].var if d in loops else next(rest) for d in range(x.rank)]
            return _reducer(how, inner)(f(cast(t(*places), inner)), axis=list(loops.values()))

        made = te.compute(k.shape(shape), element, name=name) if shape else te.compute((), lambda: element(), name=name)
        if inner == dtype:
            return made
        if not shape:
            return te.compute((), lambda: cast(made(), dtype), name="cast")
        return te.compute(k.shape(shape), lambda *i: cast(made(*i), dtype), name="cast")

    return s.te(name, build, [x], [(dtype, shape)])[0]


def _reducer(how: str, dtype: torch.dtype) -> Any:
    from tvm import te, tirx

    if how == "sum":
        return te.sum
    if how == "plain_max":
        return te.max
    if how == "prod":
        return te.comm_reducer(lambda a, b: a * b, lambda t: tirx.const(1, t), name="prod")
    top = math.inf if dtype.is_floating_point else torch.iinfo(dtype).max if dtype != torch.bool else 1
    low = -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min if dtype != torch.bool else 0
    if how == "max":
        return te.comm_reducer(maximum, lambda t: tirx.const(low, t), name="max")
    return te.comm_reducer(minimum, lambda t: tirx.const(top, t), name="min")


def folded(how: str, over_all: bool = False) -> Emitter:
    """``sum``, ``prod``, ``amax``, ``amin`` over the dims given, or over everything."""

    def emit(s: Scope, node: Node, x: Value, dim: Arg = None, keep: Arg = False, *_: Arg) -> Tensor:
        axes = axes_of(x.tensor.rank, None if over_all else dim)
        dtype = result_type(node)
        kept = bool(keep) and not over_all
        if dtype == torch.bool:
            return s.tensor(fold(s, how, s[x], axes, kept, torch.int32, how), torch.bool)
        return fold(s, how, s[x], axes, kept, dtype, how)

    return emit


def mean(over_all: bool = False) -> Emitter:
    """``mean``: the sum times the inverse of the count."""

    def emit(s: Scope, node: Node, x: Value, dim: Arg = None, keep: Arg = False, *_: Arg) -> Tensor:
        axes = axes_of(x.tensor.rank, None if over_all else dim)
        return _mean(s, s[x], axes, bool(keep) and not over_all, result_type(node))

    return emit


def _mean(s: Scope, x: Tensor, axes: Sequence[int], keep: bool, dtype: torch.dtype) -> Tensor:
    inner = wide(dtype)
    total = fold(s, "mean", x, axes, keep, inner, "sum")
    return s.pointwise("div", dtype, lambda v, n: v / n, [total, count(x, axes)], inner)


def count(x: Tensor, axes: Sequence[int]) -> Dim:
    """How many elements are reduced to one."""
    total: Dim = 1
    for axis in axes:
        total = total * x.shape[axis]
    return total


def truth(how: str) -> Emitter:
    """``any``, ``all``: the extreme of zeros and ones."""

    def emit(s: Scope, node: Node, x: Value, dim: Arg = None, keep: Arg = False) -> Tensor:
        bits = s.tensor(s[x], torch.bool)
        axes = axes_of(x.tensor.rank, dim)
        made = fold(s, "any", bits, axes, bool(keep), torch.int32, how)
        return s.tensor(made, result_type(node))

    return emit


def places(s: Scope, x: Tensor, axis: int, keep: bool, how: str) -> tuple[Tensor, Tensor]:
    """The extreme along a dim and where it first stands; NaN is beyond all."""
    from tvm import te, tirx

    shape = reduced(x.shape, [axis], keep)
    inner = torch.int32 if x.dtype == torch.bool else wide(x.dtype)

    def build(k: Kernel, t: Any) -> Any:
        loop = te.reduce_axis((literal(0, torch.int64), k.dim(x.shape[axis])), name="r")

        def combine(a: Any, b: Any) -> Any:
            better = a[1] > b[1] if how == "max" else a[1] < b[1]
            if inner.is_floating_point:
                better = tirx.any(better, tirx.all(is_nan(a[1]), tirx.Not(is_nan(b[1]))))
                equal = tirx.any(a[1] == b[1], tirx.all(is_nan(a[1]), is_nan(b[1])))
            else:
                equal = a[1] == b[1]
            first = tirx.any(better, tirx.all(equal, a[0] < b[0]))
            return tirx.Select(first, a[0], b[0]), tirx.Select(first, a[1], b[1])

        if inner.is_floating_point:
            worst = -math.inf if how == "max" else math.inf
        else:
            worst = torch.iinfo(inner).min if how == "max" else torch.iinfo(inner).max
        reducer = te.comm_reducer(combine, lambda i, v: (tirx.const(2**62, i), tirx.const(worst, v)), name=f"arg{how}")

        def element(*index: Any) -> Any:
            rest = iter(index) if not keep else iter([i for d, i in enumerate(index) if d != axis])
            where = [loop.var if d == axis else next(rest) for d in range(x.rank)]
            return reducer((tirx.Cast("int64", loop.var), cast(t(*where), inner)), axis=loop)

        return te.compute(k.shape(shape), element, name="places") if shape else te.compute((), lambda: element())

    at, best = s.te("places", build, [x], [(torch.int64, shape), (inner, shape)])
    return s.tensor(best, x.dtype), at


def extreme(how: str) -> Emitter:
    """``max.dim``, ``min.dim``: values and where they are."""

    def emit(s: Scope, node: Node, x: Value, dim: int, keep: Arg = False) -> tuple[Tensor, Tensor]:
        if not x.tensor.rank:
            return s[x], s.tensor(0, torch.int64)
        return places(s, s[x], axis_of(x.tensor.rank, dim), bool(keep), how)

    return emit


def place(how: str) -> Emitter:
    """``argmax``, ``argmin``: the first one of equals."""

    def emit(s: Scope, node: Node, x: Value, dim: Arg = None, keep: Arg = False) -> Tensor:
        if not x.tensor.rank:
            return s.tensor(0, torch.int64)
        if dim is None:
            flat = s.reshape(s[x], (x.tensor.numel,))
            return s.reshape(places(s, flat, 0, False, how)[1], shape_of(node))
        return places(s, s[x], axis_of(x.tensor.rank, dim), bool(keep), how)[1]

    return emit


def deviation(root: bool, with_mean: bool = False, form: str = "correction") -> Emitter:
    """``var``, ``std`` and the forms that also return the mean."""

    def emit(s: Scope, node: Node, x: Value, *args: Arg) -> Any:
        dim, correction, keep = spread_over(form, args)
        axes, dtype = axes_of(x.tensor.rank, dim), result_type(node)
        made, average = variance(s, s[x], axes, correction, keep, dtype)
        if root:
            made = s.pointwise("sqrt", dtype, lambda v: s.math.call("sqrt", v), [made])
        return (made, average) if with_mean else made

    return emit


def variance(
    s: Scope, x: Tensor, axes: Sequence[int], correction: float, keep: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Variance and mean over dims."""
    from tvm import tirx

    average = _mean(s, x, axes, True, wide(dtype))
    squares = s.pointwise("gap", wide(dtype), lambda v, m: (v - m) * (v - m), [x, average])
    total = fold(s, "variance", squares, axes, keep, wide(dtype), "sum")
    less = [count(x, axes), correction]
    made = s.pointwise(
        "div", dtype, lambda v, n, c: v / tirx.max(n - c, tirx.const(0, n.ty.dtype)), [total, *less], wide(dtype)
    )
    plain = s.reshape(average, reduced(x.shape, axes, keep))
    return made, s.tensor(plain, dtype)


def vector_norm(s: Scope, node: Node, x: Value, order: Arg = 2, dim: Arg = None, keep: Arg = False, *_: Arg) -> Tensor:
    """``(sum |x|^p)^(1/p)``."""
    from tvm import tirx

    dtype, axes = result_type(node), axes_of(x.tensor.rank, dim)
    order = 2 if order is None or order == "fro" else order
    inner = wide(dtype)
    if order in (math.inf, -math.inf):
        return fold(s, "norm", s[x], axes, bool(keep), dtype, "max" if order == math.inf else "min", tirx.abs)
    if order == 2:
        total = fold(s, "norm", s[x], axes, bool(keep), inner, "sum", lambda v: v * v)
        return s.pointwise("sqrt", dtype, tirx.sqrt, [total])
    if order == 1:
        return fold(s, "norm", s[x], axes, bool(keep), dtype, "sum", tirx.abs)
    if order == 0:
        return fold(s, "norm", s[x], axes, bool(keep), dtype, "sum", lambda v: cast(cast(v, torch.bool), inner))
    p = number(order)
    total = fold(
        s, "norm", s[x], axes, bool(keep), inner, "sum", lambda v: tirx.power(tirx.abs(v), tirx.const(p, v.ty.dtype))
    )
    return s.pointwise("root", dtype, lambda v: tirx.power(v, tirx.const(1 / p, v.ty.dtype)), [total])


def log_sum_exp(s: Scope, node: Node, x: Value, dim: Arg, keep: Arg = False) -> Tensor:
    """Shifted by the largest element, so that nothing overflows."""
    from tvm import tirx

    axes, dtype = axes_of(x.tensor.rank, dim), result_type(node)
    inner = wide(dtype)
    top = fold(s, "max", s[x], axes, True, inner, "max")
    top = s.pointwise("finite", inner, lambda v: tirx.Select(is_infinite(v), constant(0, v), v), [top])
    top = s.pointwise("finite", inner, lambda v: tirx.Select(is_nan(v), constant(0, v), v), [top])
    grown = s.pointwise("exp", inner, lambda v, t: s.math.exp(v - t), [x, top])
    total = fold(s, "sum", grown, axes, True, inner, "sum")
    made = s.pointwise("log", dtype, lambda v, t: s.math.log(v) + t, [total, top], inner)
    return s.reshape(made, shape_of(node))


def softmax(log: bool = False) -> Emitter:
    """Softmax in the type asked for; the half precisions are computed in f32, as torch does."""

    def emit(s: Scope, node: Node, x: Value, dim: int, *_: Arg) -> Tensor:
        dtype, rank = result_type(node), x.tensor.rank
        if not rank:
            raise Refused("softmax of a single number")
        return softmaxed(s, s.tensor(x, dtype), axis_of(rank, dim), log)

    return emit


def softmaxed(s: Scope, x: Tensor, axis: int, log: bool = False) -> Tensor:
    """``exp(x - max) / sum``."""
    inner = wide(x.dtype)
    top = fold(s, "max", x, [axis], True, inner, "plain_max")
    grown = s.pointwise("exp", inner, lambda v, t: s.math.exp(v - t), [x, top])
    total = fold(s, "sum", grown, [axis], True, inner, "sum")
    if log:
        return s.pointwise("log_softmax", x.dtype, lambda v, t, n: v - t - s.math.log(n), [x, top, total], inner)
    return s.pointwise("softmax", x.dtype, lambda v, n: v / n, [grown, total], inner)


def cumulative_sum(s: Scope, node: Node, x: Value, dim: int, *_: Arg) -> Tensor:
    """``cumsum``."""
    from tvm import relax

    from backends.tvm.dtypes import name_of

    dtype = result_type(node)
    tensor = s.tensor(x, dtype)
    if not tensor.rank:
        return tensor
    axis = axis_of(tensor.rank, dim)
    return s.raw(relax.op.cumsum(tensor.expr, axis, name_of(dtype)), dtype, tensor.shape)


def topk(
    s: Scope, node: Node, x: Value, k: Arg, dim: int = -1, largest: Arg = True, ordered: Arg = True
) -> tuple[Tensor, Tensor]:
    """The ``k`` largest or smallest, from a stable order."""
    if not x.tensor.rank:
        return s[x], s.tensor(0, torch.int64)
    values, at = _sorted(s, s[x], axis_of(x.tensor.rank, dim), bool(largest))
    return tuple(_first(s, t, shape_of(node)) for t in (values, at))  # type: ignore[return-value]


def _first(s: Scope, x: Tensor, shape: Sequence[Dim]) -> Tensor:
    return s.compute("first", shape, x.dtype, lambda k, index, t: t(*index), x)


def _sorted(s: Scope, x: Tensor, axis: int, descending: bool) -> tuple[Tensor, Tensor]:
    """Values in order and where they came from; equals keep their order."""
    from tvm import relax

    # TVM sorts no bytes and no truth values
    inner = torch.int32 if x.dtype.itemsize == 1 and not x.dtype.is_floating_point else wide(x.dtype)
    wide_x = s.tensor(x, inner)
    at = s.raw(relax.op.argsort(wide_x.expr, axis, descending, "int64"), torch.int64, x.shape)

    def body(k: Kernel, index: Sequence[Any], t: Any, order: Any) -> Any:
        where = list(index)
        where[axis] = order(*index)
        return t(*where)

    return s.compute("sorted", x.shape, x.dtype, body, x, at), at


def sort(position: int, only_places: bool = False) -> Emitter:
    """``sort``, ``argsort`` and their stable forms."""

    def emit(s: Scope, node: Node, x: Value, *args: Arg) -> Any:
        dim, descending = (*args[position:], *(-1, False)[len(args) - position :])[:2]
        if not x.tensor.rank:
            return s.tensor(0, torch.int64) if only_places else (s[x], s.tensor(0, torch.int64))
        found = _sorted(s, s[x], axis_of(x.tensor.rank, dim), bool(descending))
        return found[1] if only_places else found

    return emit


def histogram(s: Scope, node: Node, x: Value, bins: int = 100, low: Arg = 0, high: Arg = 0) -> Tensor:
    """``histc`` over a fixed range: how many elements fall into each bin, the last one closed."""
    from tvm import te, tirx

    if low == high:
        raise Refused("histc over a range that the data decides; give min and max")
    dtype, flat = result_type(node), s.reshape(s[x], (x.tensor.numel,))
    bottom, top = number(low), number(high)

    def build(k: Kernel, t: Any) -> Any:
        loop = te.reduce_axis((literal(0, torch.int64), k.dim(flat.shape[0])), name="r")

        def element(b: Any) -> Any:
            v = cast(t(loop.var), dtype)
            low_, high_ = tirx.const(bottom, v.ty.dtype), tirx.const(top, v.ty.dtype)
            where = tirx.Cast("int64", tirx.floor((v - low_) * tirx.const(bins / (top - bottom), v.ty.dtype)))
            hit = tirx.all(v >= low_, v <= high_, tirx.min(where, tirx.const(bins - 1, "int64")) == b)
            return te.sum(cast(hit, dtype), axis=loop)

        return te.compute((bins,), element, name="histc")

    return s.te("histc", build, [flat], [(dtype, (bins,))])[0]


def _spread(name: str, root: bool) -> dict[str, Emitter]:
    return {
        f"aten.{name}{m}.{o}": deviation(root, bool(m), form=o)
        for m in ("", "_mean") for o in ("correction", "dim", "default")
    }  # fmt: skip


REDUCTIONS: Mapping[str, Emitter] = {
    "aten.sum.dim_IntList": folded("sum"),
    "aten.sum.default": folded("sum", over_all=True),
    "aten.mean.dim": mean(),
    "aten.mean.default": mean(over_all=True),
    "aten.prod.dim_int": folded("prod"),
    "aten.prod.default": folded("prod", over_all=True),
    "aten.amax.default": folded("max"),
    "aten.amin.default": folded("min"),
    "aten.max.default": folded("max", over_all=True),
    "aten.min.default": folded("min", over_all=True),
    "aten.max.dim": extreme("max"),
    "aten.min.dim": extreme("min"),
    **{f"aten.any.{o}": truth("max") for o in ("default", "dim", "dims")},
    **{f"aten.all.{o}": truth("min") for o in ("default", "dim", "dims")},
    "aten.argmax.default": place("max"),
    "aten.argmin.default": place("min"),
    **_spread("var", root=False),
    **_spread("std", root=True),
    "aten.linalg_vector_norm.default": vector_norm,
    **{f"aten.norm.{o}": vector_norm for o in ("ScalarOpt_dim", "Scalar", "ScalarOpt_dim_dtype")},
    "aten.logsumexp.default": log_sum_exp,
    **{f"aten.{name}": softmax() for name in ("softmax.int", "_softmax.default")},
    **{f"aten.{name}": softmax(log=True) for name in ("log_softmax.int", "_log_softmax.default")},
    "aten.cumsum.default": cumulative_sum,
    "aten.topk.default": topk,
    "aten.sort.default": sort(0),
    "aten.sort.stable": sort(1),
    "aten.argsort.default": sort(0, only_places=True),
    "aten.argsort.stable": sort(1, only_places=True),
    "aten.histc.default": histogram,
}
