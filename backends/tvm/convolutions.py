"""Convolutions, pools and resizing, as sums over windows."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from backends.arguments import Refused, many, result_type, shape_of
from backends.tvm.dtypes import cast, literal, name_of, wide
from backends.tvm.scalars import constant, maximum
from backends.tvm.scope import Emitter, Kernel, Scope, Tensor
from ir import Arg, Dim, Node, Value


def _batched(s: Scope, x: Value, spatial: int) -> Tensor:
    """With a batch dim, which a single sample lacks."""
    tensor = s[x]
    return tensor if tensor.rank == spatial + 2 else s.reshape(tensor, (1, *tensor.shape))


def _full(node: Node, spatial: int) -> tuple[Dim, ...]:
    shape = shape_of(node)
    return shape if len(shape) == spatial + 2 else (1, *shape)


def _reduce(k: Kernel, sizes: Sequence[Dim]) -> list[Any]:
    from tvm import te

    return [te.reduce_axis((literal(0, torch.int64), k.dim(n)), name=f"r{i}") for i, n in enumerate(sizes)]


def _inside(t: Any, lead: Sequence[Any], at: Sequence[Any], sizes: Sequence[Any], other: Any) -> Any:
    """An element, or something else beyond the edge."""
    from tvm import tirx

    held = [test for a, n in zip(at, sizes, strict=True) for test in (a >= 0, a < n)]
    value = t(*lead, *at)
    return tirx.if_then_else(tirx.all(*held), value, cast(other, _dtype(value)))


def _dtype(expr: Any) -> torch.dtype:
    from backends.tvm.dtypes import NAMES

    return next(d for d, name in NAMES.items() if name == str(expr.ty.dtype))


def convolution(spatial: int) -> Emitter:
    """``conv1d/2d/3d``; padding is numbers, ``same`` or ``valid``."""

    def emit(
        s: Scope, node: Node, x: Value, weight: Value, bias: Arg = None, stride: Arg = 1, padding: Arg = 0,
        dilation: Arg = 1, groups: Arg = 1,
    ) -> Tensor:  # fmt: skip
        from tvm import te, tirx

        reach, by = many(dilation, spatial), many(stride, spatial)
        kernel = [int(n) for n in weight.tensor.shape[2:]]
        if padding == "same":
            before = [d * (n - 1) // 2 for d, n in zip(reach, kernel, strict=True)]
        else:
            before = many(0 if padding == "valid" else padding, spatial, 0)
        tensor, dtype = _batched(s, x, spatial), result_type(node)
        shape, inner = _full(node, spatial), wide(dtype)
        outs, ins = int(weight.tensor.shape[0]), int(weight.tensor.shape[1])
        per_group = outs // int(groups)  # type: ignore[arg-type]

        def build(k: Kernel, t: Any, w: Any) -> Any:
            loops = _reduce(k, [ins, *kernel])
            c, taps = loops[0].var, [loop.var for loop in loops[1:]]

            def element(n: Any, o: Any, *at: Any) -> Any:
                channel = c if groups == 1 else tirx.floordiv(o, per_group) * ins + c
                places = [a * st - p + q * d for a, st, p, q, d in zip(at, by, before, taps, reach, strict=True)]
                sizes = [k.dim(d) for d in tensor.shape[2:]]
                read = _inside(t, (n, channel), places, sizes, constant(0, t(0, 0, *[0] * spatial)))
                return te.sum(cast(read, inner) * cast(w(o, c, *taps), inner), axis=loops)

            return te.compute(k.shape(shape), element, name="conv")

        made = s.te("conv", build, [tensor, s[weight]], [(inner, shape)])[0]
        return _finish(s, node, made, bias, spatial)

    return emit


def _finish(s: Scope, node: Node, made: Tensor, bias: Arg, spatial: int) -> Tensor:
    dtype = result_type(node)
    if bias is not None:
        added = s.reshape(s[bias], (*s[bias].shape, *[1] * spatial))
        made = s.pointwise("add", dtype, lambda v, b: v + b, [made, added], made.dtype)
    return s.reshape(s.tensor(made, dtype), shape_of(node))


def transposed(spatial: int) -> Emitter:
    """``conv_transpose1d/2d/3d``: each output gathers the inputs that reach it."""

    def emit(
        s: Scope, node: Node, x: Value, weight: Value, bias: Arg = None, stride: Arg = 1, padding: Arg = 0,
        output_padding: Arg = 0, groups: Arg = 1, dilation: Arg = 1,
    ) -> Tensor:  # fmt: skip
        from tvm import te, tirx

        reach, by, before = many(dilation, spatial), many(stride, spatial), many(padding, spatial, 0)
        tensor, dtype = _batched(s, x, spatial), result_type(node)
        shape, inner = _full(node, spatial), wide(dtype)
        kernel = [int(n) for n in weight.tensor.shape[2:]]
        ins = int(weight.tensor.shape[0]) // int(groups)  # type: ignore[arg-type]
        per_group = int(weight.tensor.shape[1])

        def build(k: Kernel, t: Any, w: Any) -> Any:
            loops = _reduce(k, [ins, *kernel])
            c, taps = loops[0].var, [loop.var for loop in loops[1:]]

            def element(n: Any, o: Any, *at: Any) -> Any:
                group = tirx.floordiv(o, per_group)
                channel = group * ins + c
                spots = [a + p - q * d for a, p, q, d in zip(at, before, taps, reach, strict=True)]
                places = [tirx.floordiv(v, st) for v, st in zip(spots, by, strict=True)]
                hit = tirx.all(*(tirx.floormod(v, st) == 0 for v, st in zip(spots, by, strict=True)))
                sizes = [k.dim(d) for d in tensor.shape[2:]]
                zero = constant(0, t(0, 0, *[0] * spatial))
                read = tirx.if_then_else(hit, _inside(t, (n, channel), places, sizes, zero), zero)
                factor = w(channel, o - group * per_group, *taps)
                return te.sum(cast(read, inner) * cast(factor, inner), axis=loops)

            return te.compute(k.shape(shape), element, name="conv_transpose")

        made = s.te("conv_transpose", build, [tensor, s[weight]], [(inner, shape)])[0]
        return _finish(s, node, made, bias, spatial)

    return emit


def any_convolution(
    s: Scope, node: Node, x: Value, weight: Value, bias: Arg, stride: Arg, padding: Arg, dilation: Arg,
    is_transposed: Arg, output_padding: Arg, groups: Arg, *_: Arg,
) -> Tensor:  # fmt: skip
    """``aten.convolution``, which is all of them."""
    spatial = weight.tensor.rank - 2
    if is_transposed:
        made = transposed(spatial)(s, node, x, weight, bias, stride, padding, output_padding, groups, dilation)
    else:
        made = convolution(spatial)(s, node, x, weight, bias, stride, padding, dilation, groups)
    return made


def max_pool(spatial: int) -> Emitter:
    """``max_pool1d/2d/3d``."""

    def emit(
        s: Scope, node: Node, x: Value, kernel: Arg, stride: Arg = (), padding: Arg = 0, dilation: Arg = 1,
        ceil_mode: Arg = False,
    ) -> Any:  # fmt: skip
        from tvm import te, tirx

        if len(node.results) > 1 and node.results[1].uses:
            raise Refused("the indices of a max pool")
        size, by = many(kernel, spatial), many(stride or kernel, spatial)
        before, reach = many(padding, spatial, 0), many(dilation, spatial)
        tensor, dtype, shape = _batched(s, x, spatial), result_type(node), _full(node, spatial)
        inner = wide(dtype)
        lowest = -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min

        def build(k: Kernel, t: Any) -> Any:
            loops = _reduce(k, size)
            reducer = te.comm_reducer(maximum, lambda d: tirx.const(lowest, d), name="max")

            def element(n: Any, c: Any, *at: Any) -> Any:
                places = [
                    a * st - p + loop.var * d for a, st, p, loop, d in zip(at, by, before, loops, reach, strict=True)
                ]
                sizes = [k.dim(d) for d in tensor.shape[2:]]
                read = _inside(t, (n, c), places, sizes, literal(lowest, inner))
                return reducer(cast(read, inner), axis=loops)

            return te.compute(k.shape(shape), element, name="max_pool")

        made = s.te("max_pool", build, [tensor], [(inner, shape)])[0]
        made = s.reshape(s.tensor(made, dtype), shape_of(node))
        return made if len(node.results) == 1 else (made, made)

    return emit


Window = Callable[[Kernel, int, Any, Any], tuple[Any, Any]]


def _averaged(
    s: Scope, node: Node, x: Tensor, shape: Sequence[Dim], taps: Sequence[Dim], window: Window, divide: Any
) -> Tensor:
    """A mean over windows: ``window(kernel, dim, place, tap)`` gives where to read and whether to."""
    from tvm import te, tirx

    spatial, dtype = len(taps), result_type(node)
    inner = wide(dtype)

    def build(k: Kernel, t: Any) -> Any:
        loops = _reduce(k, taps)

        def element(n: Any, c: Any, *at: Any) -> Any:
            found = [window(k, d, at[d], loops[d].var) for d in range(spatial)]
            places, held = [p for p, _ in found], [h for _, h in found]
            sizes = [k.dim(d) for d in x.shape[2:]]
            zero = literal(0, inner)
            read = tirx.if_then_else(
                tirx.all(*held), cast(_inside(t, (n, c), places, sizes, literal(0, dtype)), inner), zero
            )
            return te.sum(read, axis=loops)

        total = te.compute(k.shape(shape), element, name="pool")
        ratio = operator.truediv if inner.is_floating_point else tirx.truncdiv
        return te.compute(
            k.shape(shape), lambda *i: cast(ratio(total(*i), cast(divide(k, i[2:]), inner)), dtype), name="mean"
        )

    made = s.te("pool", build, [x], [(dtype, tuple(shape))])[0]
    return s.reshape(made, shape_of(node))


def average_pool(spatial: int) -> Emitter:
    """``avg_pool1d/2d/3d``."""

    def emit(
        s: Scope, node: Node, x: Value, kernel: Arg, stride: Arg = (), padding: Arg = 0, ceil_mode: Arg = False,
        count_include_pad: Arg = True, divisor: Arg = None,
    ) -> Tensor:  # fmt: skip
        from tvm import tirx

        size, by, before = many(kernel, spatial), many(stride or kernel, spatial), many(padding, spatial, 0)
        tensor = _batched(s, x, spatial)

        def window(k: Kernel, d: int, at: Any, tap: Any) -> tuple[Any, Any]:
            return at * by[d] - before[d] + tap, tirx.const(True, "bool")

        def divide(k: Kernel, at: Sequence[Any]) -> Any:
            if divisor is not None:
                return tirx.const(int(divisor), "int64")  # type: ignore[arg-type]
            total = tirx.const(1, "int64")
            for d in range(spatial):
                length = k.dim(tensor.shape[2 + d])
                start = at[d] * by[d] - before[d]
                if count_include_pad:
                    total = total * (tirx.min(start + size[d], length + before[d]) - start)
                else:
                    total = total * (tirx.min(start + size[d], length) - tirx.max(start, tirx.const(0, "int64")))
            return total

        return _averaged(s, node, tensor, _full(node, spatial), size, window, divide)

    return emit


def _bounds(length: Any, wanted: Any, at: Any) -> tuple[Any, Any]:
    """The window of an adaptive pool."""
    from tvm import tirx

    return tirx.floordiv(at * length, wanted), tirx.floordiv((at + 1) * length + wanted - 1, wanted)


def adaptive_average(spatial: int) -> Emitter:
    """``adaptive_avg_pool``."""

    def emit(s: Scope, node: Node, x: Value, size: Arg) -> Tensor:
        tensor, shape = _batched(s, x, spatial), _full(node, spatial)
        taps = _taps(tensor, shape, spatial)

        def window(k: Kernel, d: int, at: Any, tap: Any) -> tuple[Any, Any]:
            start, end = _bounds(k.dim(tensor.shape[2 + d]), k.dim(shape[2 + d]), at)
            return start + tap, start + tap < end

        def divide(k: Kernel, at: Sequence[Any]) -> Any:
            total: Any = 1
            for d in range(spatial):
                start, end = _bounds(k.dim(tensor.shape[2 + d]), k.dim(shape[2 + d]), at[d])
                total = (end - start) * total
            return total

        return _averaged(s, node, tensor, shape, taps, window, divide)

    return emit


def _taps(x: Tensor, shape: Sequence[Dim], spatial: int) -> list[Dim]:
    """The longest window per dim."""
    taps: list[Dim] = []
    for have, want in zip(x.shape[-spatial:], shape[-spatial:], strict=True):
        if want == 1:
            taps.append(have)
        elif isinstance(have, int) and isinstance(want, int):
            taps.append(max(-(-(i + 1) * have // want) - i * have // want for i in range(want)))
        else:
            raise Refused("an adaptive pool over a dynamic dim to a size other than one")
    return taps


def adaptive_max(spatial: int) -> Emitter:
    """``adaptive_max_pool``."""

    def emit(s: Scope, node: Node, x: Value, size: Arg) -> Any:
        from tvm import te, tirx

        if node.results[1].uses:
            raise Refused("the indices of an adaptive max pool")
        tensor, shape, dtype = _batched(s, x, spatial), _full(node, spatial), result_type(node)
        taps, inner = _taps(tensor, shape, spatial), wide(dtype)

        def build(k: Kernel, t: Any) -> Any:
            loops = _reduce(k, taps)
            reducer = te.comm_reducer(maximum, lambda d: tirx.const(-math.inf, d), name="max")

            def element(n: Any, c: Any, *at: Any) -> Any:
                places, held = [], []
                for d in range(spatial):
                    start, end = _bounds(k.dim(tensor.shape[2 + d]), k.dim(shape[2 + d]), at[d])
                    held.append(start + loops[d].var < end)
                    places.append(tirx.min(start + loops[d].var, end - 1))
                read = cast(t(n, c, *places), inner)
                return reducer(tirx.if_then_else(tirx.all(*held), read, constant(-math.inf, read)), axis=loops)

            return te.compute(k.shape(shape), element, name="max_pool")

        made = s.te("max_pool", build, [tensor], [(inner, shape)])[0]
        made = s.reshape(s.tensor(made, dtype), shape_of(node))
        return made, made

    return emit


def _scales(node: Node, size: Arg, scales: Sequence[Arg], spatial: int) -> list[float | None]:
    """Factors that the model gave, which torch then uses instead of the ratio of sizes."""
    given = scales[0] if len(scales) == 1 and isinstance(scales[0], tuple) else scales
    found = [float(v) if isinstance(v, (int, float)) else None for v in given]
    return found if len(found) == spatial else [None] * spatial


def nearest(exact: bool = False) -> Emitter:
    """Upsampling by the nearest element, in torch's two roundings."""

    def emit(s: Scope, node: Node, x: Value, size: Arg, *scales: Arg) -> Tensor:
        from tvm import tirx

        spatial = x.tensor.rank - 2
        shape, factors = shape_of(node), _scales(node, size, scales, spatial)

        def body(k: Kernel, index: Sequence[Any], t: Any) -> Any:
            places = []
            for d in range(spatial):
                length, at = k.dim(x.tensor.shape[2 + d]), cast(index[2 + d], torch.float32)
                step = _step(k, x, shape, d, factors[d], torch.float32)
                source = (at + constant(0.5, at)) * step if exact else at * step
                place = tirx.Cast("int64", tirx.floor(source))
                places.append(tirx.max(tirx.min(place, length - 1), tirx.const(0, "int64")))
            return t(index[0], index[1], *places)

        return s.compute("resize", shape, x.tensor.dtype, body, s[x])

    return emit


def _step(k: Kernel, x: Value, shape: Sequence[Dim], d: int, factor: float | None, inner: torch.dtype) -> Any:
    from tvm import tirx

    if factor is not None:
        return tirx.const(1.0 / factor, name_of(inner))
    return cast(k.dim(x.tensor.shape[2 + d]), inner) / cast(k.dim(shape[2 + d]), inner)


def smooth(cubic: bool = False) -> Emitter:
    """Linear and cubic upsampling."""

    def emit(s: Scope, node: Node, x: Value, size: Arg, align: Arg, *scales: Arg) -> Tensor:
        from tvm import tirx

        spatial, dtype = x.tensor.rank - 2, result_type(node)
        if not dtype.is_floating_point:
            raise Refused("interpolation of whole numbers; cast to float32 before")
        shape, factors = shape_of(node), _scales(node, size, scales, spatial)
        inner = torch.float64 if dtype == torch.float64 else torch.float32

        def taps(k: Kernel, d: int, at: Any) -> list[tuple[Any, Any]]:
            length, want = k.dim(x.tensor.shape[2 + d]), k.dim(shape[2 + d])
            place = cast(at, inner)
            half, zero = tirx.const(0.5, name_of(inner)), tirx.const(0, name_of(inner))
            if align:
                span = tirx.max(want - 1, tirx.const(1, "int64"))
                source = place * (cast(length - 1, inner) / cast(span, inner))
                source = tirx.Select(want > 1, source, zero)
            else:
                source = (place + half) * _step(k, x, shape, d, factors[d], inner) - half
                source = source if cubic else tirx.max(source, zero)
            low = tirx.floor(source)
            part, first = source - low, tirx.Cast("int64", low)
            weights = _cubic(part) if cubic else [tirx.const(1, name_of(inner)) - part, part]
            offset = -1 if cubic else 0
            last = length - 1
            return [
                (tirx.max(tirx.min(first + (offset + i), last), tirx.const(0, "int64")), w)
                for i, w in enumerate(weights)
            ]

        def body(k: Kernel, index: Sequence[Any], t: Any) -> Any:
            def level(d: int, places: list[Any]) -> Any:
                if d == spatial:
                    return cast(t(index[0], index[1], *places), inner)
                total = None
                for place, weight in taps(k, d, index[2 + d]):
                    value = level(d + 1, [*places, place]) * weight
                    total = value if total is None else total + value
                return total

            return cast(level(0, []), dtype)

        return s.compute("resize", shape, dtype, body, s[x])

    return emit


def _cubic(t: Any) -> list[Any]:
    """Weights of Keys' kernel with a = -0.75, torch's."""
    a = constant(-0.75, t)

    def near(x: Any) -> Any:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Any) -> Any:
        return ((a * x - a * 5) * x + a * 8) * x - a * 4

    one = constant(1, t)
    return [far(t + one), near(t), near(one - t), far(one - t + one)]


CONVOLUTIONS: Mapping[str, Emitter] = {
    **{f"aten.conv{n}d.{o}": convolution(n) for n in (1, 2, 3) for o in ("default", "padding")},
    "aten.conv_transpose1d.default": transposed(1),
    "aten.conv_transpose2d.input": transposed(2),
    "aten.conv_transpose3d.input": transposed(3),
    "aten.convolution.default": any_convolution,
    "aten._convolution.default": any_convolution,
    **{f"aten.max_pool{n}d.default": max_pool(n) for n in (1, 2, 3)},
    **{f"aten.max_pool{n}d_with_indices.default": max_pool(n) for n in (1, 2, 3)},
    **{f"aten.avg_pool{n}d.default": average_pool(n) for n in (1, 2, 3)},
    **{f"aten.{p}adaptive_avg_pool{n}d.default": adaptive_average(n) for n in (1, 2, 3) for p in ("", "_")},
    **{f"aten.adaptive_max_pool{n}d.default": adaptive_max(n) for n in (1, 2, 3)},
    **{f"aten.upsample_nearest{n}d.{o}": nearest() for n in (1, 2, 3) for o in ("vec", "default")},
    **{f"aten._upsample_nearest_exact{n}d.vec": nearest(exact=True) for n in (1, 2, 3)},
    **{
        f"aten.upsample_{k}.{o}": smooth()
        for k in ("linear1d", "bilinear2d", "trilinear3d")
        for o in ("vec", "default")
    },
    **{f"aten.upsample_bicubic2d.{o}": smooth(cubic=True) for o in ("vec", "default")},
}
