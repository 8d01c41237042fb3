"""Convolutions, pools, resizing and padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from backends.arguments import Refused, many, result_type, shape_of
from backends.onnx_emit.pointwise import Emitter
from backends.onnx_emit.scope import LONGEST, Scope
from ir import Arg, Node, Value


def _batched(s: Scope, x: Value, spatial: int, run: Any) -> str:
    """Run on a batch; a single sample gets a batch dim for the time."""
    if x.tensor.rank == spatial + 2:
        return str(run(s[x]))
    return s.op("Squeeze", run(s.op("Unsqueeze", s[x], s.ints(0))), s.ints(0))


def convolution(spatial: int) -> Emitter:
    """``conv1d/2d/3d``; padding is numbers, ``same`` or ``valid``."""

    def emit(
        s: Scope, node: Node, x: Value, weight: Value, bias: Arg = None, stride: Arg = 1, padding: Arg = 0,
        dilation: Arg = 1, groups: Arg = 1,
    ) -> str:  # fmt: skip
        reach = many(dilation, spatial)
        kernel = [int(k) for k in weight.tensor.shape[2:]]
        if padding == "valid":
            padding = 0
        if padding == "same":
            totals = [d * (k - 1) for d, k in zip(reach, kernel, strict=True)]
            pads = [t // 2 for t in totals] + [t - t // 2 for t in totals]
        else:
            pads = many(padding, spatial, 0) * 2
        added = None if bias is None else s[bias]  # type: ignore[index]
        return _batched(s, x, spatial, lambda name: s.op(
            "Conv", name, s[weight], added, strides=many(stride, spatial), pads=pads, dilations=reach, group=groups,
            kernel_shape=kernel,
        ))  # fmt: skip

    return emit


def transposed(spatial: int) -> Emitter:
    """``conv_transpose1d/2d/3d``."""

    def emit(
        s: Scope, node: Node, x: Value, weight: Value, bias: Arg = None, stride: Arg = 1, padding: Arg = 0,
        output_padding: Arg = 0, groups: Arg = 1, dilation: Arg = 1,
    ) -> str:  # fmt: skip
        added = None if bias is None else s[bias]  # type: ignore[index]
        return _batched(s, x, spatial, lambda name: s.op(
            "ConvTranspose", name, s[weight], added, strides=many(stride, spatial),
            pads=many(padding, spatial, 0) * 2, output_padding=many(output_padding, spatial, 0), group=groups,
            dilations=many(dilation, spatial), kernel_shape=[int(k) for k in weight.tensor.shape[2:]],
        ))  # fmt: skip

    return emit


def any_convolution(
    s: Scope, node: Node, x: Value, weight: Value, bias: Arg, stride: Arg, padding: Arg, dilation: Arg,
    is_transposed: Arg, output_padding: Arg, groups: Arg, *_: Arg,
) -> str:  # fmt: skip
    """``aten.convolution``, which is all of them."""
    spatial = weight.tensor.rank - 2
    if is_transposed:
        return str(transposed(spatial)(s, node, x, weight, bias, stride, padding, output_padding, groups, dilation))
    return str(convolution(spatial)(s, node, x, weight, bias, stride, padding, dilation, groups))


def max_pool(spatial: int) -> Emitter:
    """``max_pool1d/2d/3d``."""

    def emit(
        s: Scope, node: Node, x: Value, kernel: Arg, stride: Arg = (), padding: Arg = 0, dilation: Arg = 1,
        ceil_mode: Arg = False,
    ) -> str | tuple[str, ...]:  # fmt: skip
        if len(node.results) > 1 and node.results[1].uses:
            raise Refused("the indices of a max pool")
        size = many(kernel, spatial)
        made = _batched(s, x, spatial, lambda name: s.op(
            "MaxPool", name, kernel_shape=size, strides=many(stride or kernel, spatial),
            pads=many(padding, spatial, 0) * 2, dilations=many(dilation, spatial), ceil_mode=int(bool(ceil_mode)),
        ))  # fmt: skip
        return made if len(node.results) == 1 else (made, "")

    return emit


def average_pool(spatial: int) -> Emitter:
    """``avg_pool1d/2d/3d``."""

    def emit(
        s: Scope, node: Node, x: Value, kernel: Arg, stride: Arg = (), padding: Arg = 0, ceil_mode: Arg = False,
        count_include_pad: Arg = True, divisor: Arg = None,
    ) -> str:  # fmt: skip
        if divisor is not None:
            raise Refused("an average pool with a divisor of its own")
        size, around = many(kernel, spatial), many(padding, spatial, 0)
        if s.flavor == "openvino" and ceil_mode and count_include_pad and any(around):
            raise Refused("an average pool with padding and ceil_mode, which OpenVINO divides otherwise")
        return _batched(s, x, spatial, lambda name: s.op(
            "AveragePool", name, kernel_shape=size, strides=many(stride or kernel, spatial),
            pads=around * 2, ceil_mode=int(bool(ceil_mode)),
            count_include_pad=int(bool(count_include_pad)),
        ))  # fmt: skip

    return emit


def adaptive_average(spatial: int) -> Emitter:
    """``adaptive_avg_pool``: a mean, or one small product per dim with a matrix of averages."""

    def emit(s: Scope, node: Node, x: Value, size: Arg) -> str:
        rank, name, dtype = x.tensor.rank, s[x], result_type(node)
        want = many(size, spatial)
        if all(w == 1 for w in want):
            return s.op("ReduceMean", name, s.ints(*range(rank - spatial, rank)), keepdims=1)
        for offset, new in enumerate(want):
            axis = rank - spatial + offset
            old = x.tensor.shape[axis]
            if old == new:
                continue
            if not isinstance(old, int):
                raise Refused("an adaptive pool over a dynamic dim to a size other than one")
            order = [d for d in range(rank) if d != axis] + [axis]
            moved = s.op("MatMul", s.transpose(name, order), s.const(_averages(old, new), dtype))
            name = s.transpose(moved, [order.index(d) for d in range(rank)])
        return name

    return emit


def _averages(old: int, new: int) -> torch.Tensor:
    matrix = torch.zeros(old, new)
    for i in range(new):
        start, end = i * old // new, -(-(i + 1) * old // new)
        matrix[start:end, i] = 1 / (end - start)
    return matrix


def adaptive_max(spatial: int) -> Emitter:
    """``adaptive_max_pool`` to one, or by windows that divide evenly."""

    def emit(s: Scope, node: Node, x: Value, size: Arg) -> tuple[str, str]:
        if node.results[1].uses:
            raise Refused("the indices of an adaptive max pool")
        rank, want = x.tensor.rank, many(size, spatial)
        have = x.tensor.shape[-spatial:]
        if all(w == 1 for w in want):
            return s.op("ReduceMax", s[x], s.ints(*range(rank - spatial, rank)), keepdims=1), ""
        if not all(isinstance(h, int) and h % w == 0 for h, w in zip(have, want, strict=True)):
            raise Refused("an adaptive max pool whose windows overlap")
        window = [int(h) // w for h, w in zip(have, want, strict=True)]
        return _batched(s, x, spatial, lambda name: s.op("MaxPool", name, kernel_shape=window, strides=window)), ""

    return emit


def _resize(s: Scope, node: Node, x: Value, size: Arg, scales: Arg, **attributes: Any) -> str:
    if isinstance(scales, (int, float)):
        scales = (scales,)
    if isinstance(scales, tuple) and all(isinstance(f, (int, float)) for f in scales) and size is None:
        factors = s.const([1.0, 1.0, *scales], torch.float32)
        return s.op("Resize", s[x], None, factors, **attributes)
    assert isinstance(size, tuple)
    whole = s.join([s.size_of(x, 0), s.size_of(x, 1), s.vector(size)])
    return s.op("Resize", s[x], None, None, whole, **attributes)


def nearest(exact: bool = False) -> Emitter:
    """Upsampling by the nearest element, in torch's two roundings."""
    how = ("half_pixel", "round_prefer_ceil") if exact else ("asymmetric", "floor")

    def emit(s: Scope, node: Node, x: Value, size: Arg, *scales: Arg) -> str:
        factors = scales[0] if len(scales) == 1 else None
        return _resize(
            s,
            node,
            x,
            size,
            factors,
            mode="nearest",
            coordinate_transformation_mode=how[0],
            nearest_mode=how[1],
        )

    return emit


def smooth(mode: str) -> Emitter:
    """Linear and cubic upsampling."""

    def emit(s: Scope, node: Node, x: Value, size: Arg, align: Arg, *scales: Arg) -> str:
        factors = scales[0] if len(scales) == 1 else None
        return _resize(
            s, node, x, size, factors, mode=mode, cubic_coeff_a=-0.75 if mode == "cubic" else None,
            coordinate_transformation_mode="align_corners" if align else "half_pixel",
        )  # fmt: skip

    return emit


def pad(s: Scope, node: Node, x: Value, pads: Sequence[Arg], mode: Arg = "constant", value: Arg = None) -> str:
    """``aten.pad``: torch counts from the last dim, in pairs."""
    rank = x.tensor.rank
    if mode == "circular":
        return _wrapped(s, x, pads)
    kind = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}.get(str(mode))
    if kind is None:
        raise Refused(f"padding mode {mode}")
    first: list[Arg] = [0] * rank
    last: list[Arg] = [0] * rank
    for index in range(len(pads) // 2):
        first[rank - 1 - index], last[rank - 1 - index] = pads[2 * index], pads[2 * index + 1]
    content = s.tensor(value or 0, result_type(node)) if kind == "constant" else None
    return s.op("Pad", s[x], s.vector([*first, *last]), content, mode=kind)


def _wrapped(s: Scope, x: Value, pads: Sequence[Arg]) -> str:
    """Padding by the other end, from slices: not every engine has the mode."""
    name = s[x]
    for index in range(len(pads) // 2):
        before, after = pads[2 * index : 2 * index + 2]
        if not isinstance(before, int) or not isinstance(after, int) or min(before, after) < 0:
            raise Refused("circular padding by sizes that are known only when it runs")
        axis = x.tensor.rank - 1 - index
        parts = [name]
        if before:
            parts.insert(0, s.op("Slice", name, s.ints(-before), s.ints(LONGEST), s.ints(axis)))
        if after:
            parts.append(s.op("Slice", name, s.ints(0), s.ints(after), s.ints(axis)))
        name = s.op("Concat", *parts, axis=axis)
    return name


def constant_pad(s: Scope, node: Node, x: Value, pads: Sequence[Arg], value: Arg = 0) -> str:
    """``constant_pad_nd``."""
    return pad(s, node, x, pads, "constant", value)


def padded_by(mode: str) -> Emitter:
    """``reflection_pad``, ``replication_pad``."""

    def emit(s: Scope, node: Node, x: Value, pads: Sequence[Arg]) -> str:
        return pad(s, node, x, pads, mode)

    return emit


def pixel_unshuffle(s: Scope, node: Node, x: Value, factor: int) -> str:
    """Space to channels, torch's order."""
    want = shape_of(node)
    if not all(isinstance(d, int) for d in x.tensor.shape[-3:]):
        raise Refused("pixel_unshuffle of dynamic sizes")
    channels, height, width = (int(d) for d in x.tensor.shape[-3:])
    six = s.op("Reshape", s[x], s.ints(-1, channels, height // factor, factor, width // factor, factor))
    return s.reshape(s.transpose(six, (0, 1, 3, 5, 2, 4)), (), want) if len(want) == 3 else s.op(
        "Reshape", s.transpose(six, (0, 1, 3, 5, 2, 4)), s.ints(-1, *(int(d) for d in want[-3:]))
    )  # fmt: skip


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
    **{f"aten.upsample_nearest{n}d.vec": nearest() for n in (1, 2, 3)},
    **{f"aten.upsample_nearest{n}d.default": nearest() for n in (1, 2, 3)},
    **{f"aten._upsample_nearest_exact{n}d.vec": nearest(exact=True) for n in (1, 2, 3)},
    **{
        f"aten.upsample_{k}.{o}": smooth("linear")
        for k in ("linear1d", "bilinear2d", "trilinear3d")
        for o in ("vec", "default")
    },
    **{f"aten.upsample_bicubic2d.{o}": smooth("cubic") for o in ("vec", "default")},
    "aten.pad.default": pad,
    "aten.constant_pad_nd.default": constant_pad,
    **{f"aten.reflection_pad{n}d.default": padded_by("reflect") for n in (1, 2, 3)},
    **{f"aten.replication_pad{n}d.default": padded_by("replicate") for n in (1, 2, 3)},
    "aten.pixel_unshuffle.default": pixel_unshuffle,
}  # fmt: skip
