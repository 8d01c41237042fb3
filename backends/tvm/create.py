"""Tensors from nothing: filled, counted, one-hot, triangles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from backends.arguments import Refused, result_type, shape_of
from backends.tvm.dtypes import cast, literal
from backends.tvm.scope import Emitter, Kernel, Scope, Tensor
from ir import Arg, Node, ScalarType, Value


def filled(s: Scope, node: Node, value: Arg) -> Tensor:
    """A tensor of one value; the result's type says shape and elements."""
    return s.pointwise("full", result_type(node), lambda v: v, [value], shape=shape_of(node))


def constant_fill(value: float) -> Emitter:
    """``zeros``, ``ones``, ``empty`` (which is zeros here: any content is as right)."""
    return lambda s, node, *_: filled(s, node, value)


def given(position: int) -> Emitter:
    """The value stands among the arguments."""
    return lambda s, node, *args: filled(s, node, args[position])


def scalar_tensor(s: Scope, node: Node, value: Arg, *_: Arg) -> Tensor:
    """A 0-d tensor."""
    return filled(s, node, value)


def counted(s: Scope, node: Node, start: Arg, step: Arg) -> Tensor:
    """``arange``; floats are counted in double, as torch does on the CPU, then converted."""
    whole = all(isinstance(a, int) or (isinstance(a, Value) and _is_int(a)) for a in (start, step))
    within = torch.int64 if whole else torch.float64
    values = [s.get(a) if isinstance(a, Value) else a for a in (start, step)]
    tensors = list(dict.fromkeys(v for v in values if isinstance(v, Tensor)))

    def body(k: Kernel, index: Sequence[Any], *held: Any) -> Any:
        read = dict(zip(tensors, held, strict=True))
        first, by = (
            cast(read[v](), within) if isinstance(v, Tensor)
            else literal(v, within) if isinstance(v, (bool, int, float)) else cast(k.dim(v), within)
            for v in values
        )  # fmt: skip
        return cast(first + cast(index[0], within) * by, result_type(node))

    return s.compute("arange", shape_of(node), result_type(node), body, *tensors)


def _is_int(value: Value) -> bool:
    if isinstance(value.type, ScalarType):
        return value.type.kind != "float"
    return not value.tensor.dtype.is_floating_point


def arange(s: Scope, node: Node, end: Arg, *_: Arg) -> Tensor:
    """``arange(end)``."""
    return counted(s, node, 0, 1)


def arange_start(s: Scope, node: Node, start: Arg, end: Arg, *_: Arg) -> Tensor:
    """``arange(start, end)``."""
    return counted(s, node, start, 1)


def arange_step(s: Scope, node: Node, start: Arg, end: Arg, step: Arg = 1, *_: Arg) -> Tensor:
    """``arange(start, end, step)``."""
    return counted(s, node, start, step)


def linspace(s: Scope, node: Node, start: Arg, end: Arg, steps: Arg, *_: Arg) -> Tensor:
    """Evenly spaced numbers, known when compiling."""
    if not all(isinstance(a, (int, float)) for a in (start, end, steps)):
        raise Refused("linspace with bounds that are known only when it runs")
    return s.constant(torch.linspace(float(start), float(end), int(steps), dtype=result_type(node)))  # type: ignore[arg-type]


def one_hot(s: Scope, node: Node, x: Value, classes: Arg = -1) -> Tensor:
    """Ones at the indices given."""
    if classes == -1:
        raise Refused("one_hot with a number of classes that the data decides; give num_classes")
    return s.compute(
        "one_hot", shape_of(node), torch.int64,
        lambda k, index, t: cast(t(*index[:-1]) == index[-1], torch.int64), s[x],
    )  # fmt: skip


def triangle(upper: bool) -> Emitter:
    """``tril``, ``triu``."""

    def emit(s: Scope, node: Node, x: Value, diagonal: Arg = 0) -> Tensor:
        from tvm import tirx

        dtype, off = result_type(node), s.size(diagonal)

        def body(k: Kernel, index: Sequence[Any], t: Any) -> Any:
            gap = index[-1] - index[-2] - k.dim(off)
            return tirx.Select(gap >= 0 if upper else gap <= 0, t(*index), cast(literal(0, dtype), dtype))

        return s.compute("triangle", shape_of(node), dtype, body, s[x])

    return emit


def eye(s: Scope, node: Node, *_: Arg) -> Tensor:
    """Ones on the diagonal."""
    dtype = result_type(node)
    return s.compute("eye", shape_of(node), dtype, lambda k, index: cast(index[0] == index[1], dtype))


CREATE: Mapping[str, Emitter] = {
    "aten.zeros.default": constant_fill(0),
    "aten.ones.default": constant_fill(1),
    "aten.empty.memory_format": constant_fill(0),
    "aten.full.default": given(1),
    "aten.zeros_like.default": constant_fill(0),
    "aten.empty_like.default": constant_fill(0),
    "aten.ones_like.default": constant_fill(1),
    "aten.full_like.default": given(1),
    "aten.new_zeros.default": constant_fill(0),
    "aten.new_empty.default": constant_fill(0),
    "aten.new_ones.default": constant_fill(1),
    "aten.new_full.default": given(2),
    "aten.scalar_tensor.default": scalar_tensor,
    "aten.arange.default": arange,
    "aten.arange.start": arange_start,
    "aten.arange.start_step": arange_step,
    "aten.linspace.default": linspace,
    "aten.one_hot.default": one_hot,
    "aten.tril.default": triangle(upper=False),
    "aten.triu.default": triangle(upper=True),
    "aten.eye.default": eye,
    "aten.eye.m": eye,
    "aten.fill.Scalar": given(1),
    "aten.fill.Tensor": given(1),
}
