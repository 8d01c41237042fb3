"""Sums, means, extremes, truth over dims; sorting and counting."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from backends.arguments import Refused, number, result_type, spread_over
from backends.onnx_emit.dtypes import axis_of
from backends.onnx_emit.pointwise import Emitter, wider
from backends.onnx_emit.scope import Scope
from ir import Arg, Node, Value

_I64 = torch.int64


def _axes(s: Scope, x: Value, dim: Arg) -> str | None:
    """Dims to reduce as a constant; ``None`` for all."""
    if dim is None or dim == ():
        return None
    dims = dim if isinstance(dim, tuple) else (dim,)
    return s.ints(*(int(d) % max(x.tensor.rank, 1) for d in dims))


def reduce(s: Scope, kind: str, name: str, axes: str | None, keep: Arg, rank: int) -> str:
    """One ONNX reduction; a single number has nothing to reduce."""
    return s.op(kind, name, axes, keepdims=int(bool(keep))) if rank else name


def summed(kind: str) -> Emitter:
    """``sum``, ``prod``, ``mean``, ``amax``, ``amin`` over the dims given."""

    def emit(s: Scope, node: Node, x: Value, dim: Arg = None, keep: Arg = False, *_: Arg) -> str:
        dtype = result_type(node)
        name = s.cast(s.tensor(x, dtype), dtype, wider(dtype))
        return s.cast(reduce(s, kind, name, _axes(s, x, dim), keep, x.tensor.rank), wider(dtype), dtype)

    return emit


def summed_all(kind: str) -> Emitter:
    """The same over everything; a second argument is the type, which the result says."""

    def emit(s: Scope, node: Node, x: Value, *_: Arg) -> str:
        dtype = result_type(node)
        name = s.cast(s.tensor(x, dtype), dtype, wider(dtype))
        return s.cast(reduce(s, kind, name, None, False, x.tensor.rank), wider(dtype), dtype)

    return emit


def truth(kind: str) -> Emitter:
    """``any``, ``all``: the extreme of zeros and ones."""

    def emit(s: Scope, node: Node, x: Value, dim: Arg = None, keep: Arg = False) -> str:
        bits = s.cast(s.tensor(x, torch.bool), torch.bool, torch.int32)
        made = reduce(s, kind, bits, _axes(s, x, dim), keep, x.tensor.rank)
        return s.cast(made, torch.int32, result_type(node))

    return emit


def extreme(kind: str) -> Emitter:
    """``max.dim``, ``min.dim``: values and where they are."""

    def emit(s: Scope, node: Node, x: Value, dim: int, keep: Arg = False) -> tuple[str, str]:
        if not x.tensor.rank:
            return s[x], s.const(0, _I64)
        axis = axis_of(x, dim)
        name, back = _ordered(s, x)
        values = s.op(f"Reduce{kind}", name, s.ints(axis), keepdims=int(bool(keep)))
        return s.cast(values, back, x.tensor.dtype), s.op(f"Arg{kind}", name, axis=axis, keepdims=int(bool(keep)))

    return emit


def place(kind: str) -> Emitter:
    """``argmax``, ``argmin``: the first one of equals."""

    def emit(s: Scope, node: Node, x: Value, dim: Arg = None, keep: Arg = False) -> str:
        if not x.tensor.rank:
            return s.const(0, _I64)
        name, _ = _ordered(s, x)
        if dim is None:
            flat = s.op(kind, s.op("Reshape", name, s.ints(-1)), axis=0, keepdims=0)
            return s.op("Reshape", flat, s.ints(*[1] * x.tensor.rank)) if keep else flat
        assert isinstance(dim, int)
        return s.op(kind, name, axis=axis_of(x, dim), keepdims=int(bool(keep)))

    return emit


def _ordered(s: Scope, x: Value) -> tuple[str, torch.dtype]:
    """An operand in a type that ONNX engines can order."""
    have = x.tensor.dtype
    want = wider(have)
    return s.cast(s[x], have, want), want


def _variance(s: Scope, x: Value, dim: Arg, correction: float, keep: Arg) -> tuple[str, str]:
    dtype, rank = x.tensor.dtype, x.tensor.rank
    axes = _axes(s, x, dim)
    mean = reduce(s, "ReduceMean", s[x], axes, True, rank)
    gap = s.op("Sub", s[x], mean)
    total = reduce(s, "ReduceSum", s.op("Mul", gap, gap), axes, keep, rank)
    reduced = range(rank) if axes is None else s.literal(axes)
    sizes = [s.size_of(x, d) for d in reduced]
    if all(map(s.is_constant, sizes)):
        number = math.prod(s.literal(n)[0] for n in sizes)
        count = s.const(max(number - correction, 0.0), dtype)
    else:
        length = s.op("ReduceProd", s.join(sizes), keepdims=0)
        less = s.op("Sub", s.cast(length, _I64, dtype), s.const(correction, dtype))
        count = s.op("Max", less, s.const(0, dtype))
    plain = mean if keep or not rank else s.op("Squeeze", mean, axes) if axes else s.op("Reshape", mean, s.ints())
    return s.op("Div", total, count), plain


def deviation(root: bool, with_mean: bool = False, form: str = "correction") -> Emitter:
    """``var``, ``std`` and the forms that also return the mean."""

    def emit(s: Scope, node: Node, x: Value, *args: Arg) -> str | tuple[str, ...]:
        dim, correction, keep = spread_over(form, args)
        made, mean = _variance(s, x, dim, correction, keep)
        made = s.op("Sqrt", made) if root else made
        return (made, mean) if with_mean else made

    return emit


def vector_norm(s: Scope, node: Node, x: Value, order: Arg = 2, dim: Arg = None, keep: Arg = False, *_: Arg) -> str:
    """``(sum |x|^p)^(1/p)``."""
    dtype, rank = result_type(node), x.tensor.rank
    name, axes = s.tensor(x, dtype), _axes(s, x, dim)
    order = 2 if order is None else order
    if order == "fro" or order == 2:
        return reduce(s, "ReduceL2", name, axes, keep, rank) if rank else s.op("Abs", name)
    size = s.op("Abs", name)
    if order in (math.inf, -math.inf):
        return reduce(s, "ReduceMax" if order == math.inf else "ReduceMin", size, axes, keep, rank)
    if order == 1:
        return reduce(s, "ReduceSum", size, axes, keep, rank)
    if order == 0:
        bits = s.cast(s.tensor(x, torch.bool), torch.bool, dtype)
        return reduce(s, "ReduceSum", bits, axes, keep, rank)
    powers = reduce(s, "ReduceSum", s.op("Pow", size, s.tensor(order, dtype)), axes, keep, rank)
    return s.op("Pow", powers, s.const(1 / number(order), dtype))


def log_sum_exp(s: Scope, node: Node, x: Value, dim: Arg, keep: Arg = False) -> str:
    """Shifted by the largest element, so that nothing overflows."""
    if not x.tensor.rank:
        return s.tensor(x, result_type(node))
    dtype, axes = result_type(node), _axes(s, x, dim)
    name = s.tensor(x, dtype)
    top = s.op("ReduceMax", name, axes, keepdims=1)
    infinite = s.op("Equal", s.op("Abs", top), s.const(math.inf, dtype))
    top = s.op("Where", infinite, s.const(0, dtype), top)
    total = s.op("Log", s.op("ReduceSum", s.op("Exp", s.op("Sub", name, top)), axes, keepdims=1))
    made = s.op("Add", total, top)
    return made if keep else s.op("Squeeze", made, axes)


def cumulative_sum(s: Scope, node: Node, x: Value, dim: int, *_: Arg) -> str:
    """``cumsum``."""
    name = s.tensor(x, result_type(node))
    return s.op("CumSum", name, s.const(axis_of(x, dim), _I64)) if x.tensor.rank else name


def topk(
    s: Scope, node: Node, x: Value, k: Arg, dim: int = -1, largest: Arg = True, ordered: Arg = True
) -> tuple[str, str]:
    """The ``k`` largest or smallest."""
    name, wide = _ordered(s, x)
    values, places = s.ops("TopK", 2, name, s.vector([k]), axis=axis_of(x, dim), largest=int(bool(largest)), sorted=1)
    return s.cast(values, wide, x.tensor.dtype), places


def _sorted(s: Scope, x: Value, dim: int, descending: Arg, stable: Arg = False) -> tuple[str, str]:
    if s.flavor == "openvino" and stable:
        raise Refused("a stable sort, which OpenVINO does not have")
    name, wide = _ordered(s, x)
    axis = axis_of(x, dim)
    values, places = s.ops("TopK", 2, name, s.size_of(x, axis), axis=axis, largest=int(bool(descending)), sorted=1)
    return s.cast(values, wide, x.tensor.dtype), places


def sort(s: Scope, node: Node, x: Value, dim: int = -1, descending: Arg = False) -> tuple[str, str]:
    """``sort``; ONNX keeps the order of equals."""
    return _sorted(s, x, dim, descending)


def sort_stable(s: Scope, node: Node, x: Value, stable: Arg, dim: int = -1, descending: Arg = False) -> tuple[str, str]:
    """``sort.stable``."""
    return _sorted(s, x, dim, descending, stable)


def argsort(s: Scope, node: Node, x: Value, dim: int = -1, descending: Arg = False) -> str:
    """Only the places."""
    return _sorted(s, x, dim, descending)[1]


def argsort_stable(s: Scope, node: Node, x: Value, stable: Arg, dim: int = -1, descending: Arg = False) -> str:
    """``argsort.stable``."""
    return _sorted(s, x, dim, descending, stable)[1]


def histogram(s: Scope, node: Node, x: Value, bins: int = 100, low: Arg = 0, high: Arg = 0) -> str:
    """``histc`` over a fixed range: how many elements fall into each bin, the last one closed."""
    if low == high:
        raise Refused("histc over a range that the data decides; give min and max")
    dtype = result_type(node)
    flat = s.op("Reshape", s.cast(s[x], x.tensor.dtype, dtype), s.ints(-1))
    low_, high_ = number(low), number(high)
    inside = s.op(
        "And",
        s.op("GreaterOrEqual", flat, s.const(low_, dtype)),
        s.op("LessOrEqual", flat, s.const(high_, dtype)),
    )
    scaled = s.op("Mul", s.op("Sub", flat, s.const(low_, dtype)), s.const(bins / (high_ - low_), dtype))
    bin_ = s.op("Min", s.op("Floor", scaled), s.const(bins - 1, dtype))
    bin_ = s.op("Where", inside, bin_, s.const(-1, dtype))
    hits = s.op("Equal", s.op("Unsqueeze", bin_, s.ints(1)), s.const(torch.arange(bins), dtype))
    return s.op("ReduceSum", s.cast(hits, torch.bool, dtype), s.ints(0), keepdims=0)


def _spread(name: str, root: bool) -> dict[str, Emitter]:
    return {
        f"aten.{name}.correction": deviation(root),
        f"aten.{name}.dim": deviation(root, form="dim"),
        f"aten.{name}.default": deviation(root, form="default"),
        f"aten.{name}_mean.correction": deviation(root, with_mean=True),
        f"aten.{name}_mean.dim": deviation(root, with_mean=True, form="dim"),
        f"aten.{name}_mean.default": deviation(root, with_mean=True, form="default"),
    }


REDUCTIONS: Mapping[str, Emitter] = {
    "aten.sum.dim_IntList": summed("ReduceSum"),
    "aten.sum.default": summed_all("ReduceSum"),
    "aten.mean.dim": summed("ReduceMean"),
    "aten.mean.default": summed_all("ReduceMean"),
    "aten.prod.dim_int": summed("ReduceProd"),
    "aten.prod.default": summed_all("ReduceProd"),
    "aten.amax.default": summed("ReduceMax"),
    "aten.amin.default": summed("ReduceMin"),
    "aten.max.default": summed_all("ReduceMax"),
    "aten.min.default": summed_all("ReduceMin"),
    "aten.max.dim": extreme("Max"),
    "aten.min.dim": extreme("Min"),
    **{f"aten.any.{o}": truth("ReduceMax") for o in ("default", "dim", "dims")},
    **{f"aten.all.{o}": truth("ReduceMin") for o in ("default", "dim", "dims")},
    "aten.argmax.default": place("ArgMax"),
    "aten.argmin.default": place("ArgMin"),
    **_spread("var", root=False),
    **_spread("std", root=True),
    "aten.linalg_vector_norm.default": vector_norm,
    **{f"aten.norm.{o}": vector_norm for o in ("ScalarOpt_dim", "Scalar", "ScalarOpt_dim_dtype")},
    "aten.logsumexp.default": log_sum_exp,
    "aten.cumsum.default": cumulative_sum,
    "aten.topk.default": topk,
    "aten.sort.default": sort,
    "aten.sort.stable": sort_stable,
    "aten.argsort.default": argsort,
    "aten.argsort.stable": argsort_stable,
    "aten.histc.default": histogram,
}
