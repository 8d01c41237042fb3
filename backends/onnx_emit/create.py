"""Tensors from nothing: filled, counted, one-hot, triangles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from backends.arguments import Refused, result_type, shape_of
from backends.onnx_emit.pointwise import Emitter, choose
from backends.onnx_emit.scope import Scope
from ir import Arg, Node, ScalarType, Value

_I64 = torch.int64


def filled(s: Scope, node: Node, size: Sequence[Arg], value: Arg) -> str:
    """A tensor of one value in the result's type, sizes as the model says them."""
    dtype = result_type(node)
    number = s.tensor(value, dtype)
    if not size:
        return number
    return s.op("Expand", number, s.vector(size))


def constant_fill(value: float) -> Emitter:
    """``zeros``, ``ones``, ``empty`` (which is zeros here: any content is as right)."""

    def emit(s: Scope, node: Node, size: Sequence[Arg], *_: Arg) -> str:
        return filled(s, node, size, value)

    return emit


def full(s: Scope, node: Node, size: Sequence[Arg], value: Arg, *_: Arg) -> str:
    """``aten.full``."""
    return filled(s, node, size, value)


def alike(value: float | None = None) -> Emitter:
    """``zeros_like``, ``ones_like``, ``full_like``."""

    def emit(s: Scope, node: Node, x: Value, *rest: Arg) -> str:
        number: Arg = value if value is not None else rest[0]
        made = s.tensor(number, result_type(node))
        return s.op("Expand", made, s.sizes_of(x)) if x.tensor.rank else made

    return emit


def new(value: float | None = None) -> Emitter:
    """``new_zeros``, ``new_ones``, ``new_full``."""

    def emit(s: Scope, node: Node, x: Value, size: Sequence[Arg], *rest: Arg) -> str:
        return filled(s, node, size, value if value is not None else rest[0])

    return emit


def scalar_tensor(s: Scope, node: Node, value: Arg, *_: Arg) -> str:
    """A 0-d tensor."""
    return s.tensor(value, result_type(node))


def counted(s: Scope, node: Node, start: Arg, end: Arg, step: Arg) -> str:
    """``arange``; floats are counted in double, as torch does on the CPU, then converted."""
    dtype = result_type(node)
    whole = all(isinstance(a, int) or (isinstance(a, Value) and _is_int(a)) for a in (start, end, step))
    within = _I64 if whole else torch.float64
    if whole and isinstance(start, int) and isinstance(end, int) and isinstance(step, int):
        numbers = torch.arange(start, end, step)
        if numbers.numel() <= 64:
            return s.const(numbers, dtype)
    made = s.op("Range", s.tensor(start, within), s.tensor(end, within), s.tensor(step, within))
    return s.cast(made, within, dtype)


def _is_int(value: Value) -> bool:
    if isinstance(value.type, ScalarType):
        return value.type.kind != "float"
    return not value.tensor.dtype.is_floating_point


def arange(s: Scope, node: Node, end: Arg, *_: Arg) -> str:
    """``arange(end)``."""
    return counted(s, node, 0, end, 1)


def arange_start(s: Scope, node: Node, start: Arg, end: Arg, *_: Arg) -> str:
    """``arange(start, end)``."""
    return counted(s, node, start, end, 1)


def arange_step(s: Scope, node: Node, start: Arg, end: Arg, step: Arg = 1, *_: Arg) -> str:
    """``arange(start, end, step)``."""
    return counted(s, node, start, end, step)


def linspace(s: Scope, node: Node, start: Arg, end: Arg, steps: Arg, *_: Arg) -> str:
    """Evenly spaced numbers, known when compiling."""
    if not all(isinstance(a, (int, float)) for a in (start, end, steps)):
        raise Refused("linspace with bounds that are known only when it runs")
    dtype = result_type(node)
    return s.const(torch.linspace(float(start), float(end), int(steps), dtype=dtype), dtype)  # type: ignore[arg-type]


def one_hot(s: Scope, node: Node, x: Value, classes: Arg = -1) -> str:
    """Ones at the indices given."""
    if classes == -1:
        raise Refused("one_hot with a number of classes that the data decides; give num_classes")
    return s.op("OneHot", s[x], s.vector([classes]), s.ints(0, 1), axis=-1)


def triangle(upper: bool) -> Emitter:
    """``tril``, ``triu``. ONNX engines miss some element types: the mask is made and applied instead."""

    def emit(s: Scope, node: Node, x: Value, diagonal: Arg = 0) -> str:
        if isinstance(diagonal, Value):
            raise Refused("a diagonal that is known only when it runs")
        mask = triangle_mask(s, s.size_of(x, -2), s.size_of(x, -1), int(diagonal), upper)  # type: ignore[arg-type]
        dtype = result_type(node)
        return choose(s, mask, s[x], s.const(0, dtype), dtype)

    return emit


def triangle_mask(s: Scope, rows: str, columns: str, diagonal: int, upper: bool) -> str:
    """A bool matrix, true on and below (above) a diagonal; sizes are vectors of one."""
    row = s.op("Unsqueeze", count(s, rows), s.ints(1))
    column = count(s, columns)
    if diagonal:
        row = s.op("Add", row, s.const(diagonal, _I64))
    return s.op("GreaterOrEqual", column, row) if upper else s.op("GreaterOrEqual", row, column)


def count(s: Scope, size: str) -> str:
    """``0 .. size - 1``."""
    if s.is_constant(size):
        return s.const(torch.arange(s.literal(size)[0]), _I64)
    return s.op("Range", s.const(0, _I64), s.op("Squeeze", size, s.ints(0)), s.const(1, _I64))


def eye(s: Scope, node: Node, rows: Arg, columns: Arg = None, *_: Arg) -> str:
    """Ones on the diagonal."""
    if not isinstance(columns, (int, Value)) or isinstance(columns, bool):
        columns = rows
    row = s.op("Unsqueeze", count(s, s.vector([rows])), s.ints(1))
    same = s.op("Equal", row, count(s, s.vector([columns])))
    return s.cast(same, torch.bool, result_type(node))


def fill(s: Scope, node: Node, x: Value, value: Arg) -> str:
    """A tensor of the same shape with one value."""
    assert shape_of(node) == x.tensor.shape
    made = s.tensor(value, result_type(node))
    return s.op("Expand", made, s.sizes_of(x)) if x.tensor.rank else made


CREATE: Mapping[str, Emitter] = {
    "aten.zeros.default": constant_fill(0),
    "aten.ones.default": constant_fill(1),
    "aten.empty.memory_format": constant_fill(0),
    "aten.full.default": full,
    "aten.zeros_like.default": alike(0),
    "aten.empty_like.default": alike(0),
    "aten.ones_like.default": alike(1),
    "aten.full_like.default": alike(),
    "aten.new_zeros.default": new(0),
    "aten.new_empty.default": new(0),
    "aten.new_ones.default": new(1),
    "aten.new_full.default": new(),
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
    "aten.fill.Scalar": fill,
    "aten.fill.Tensor": fill,
}
