"""What emitters read of a node, whatever they emit: numbers, windows, the types that torch computes in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch

from ir import Arg, Dim, Node, ScalarType, TensorType, Value

SCALARS: Mapping[str, torch.dtype] = {"int": torch.int64, "float": torch.float64, "bool": torch.bool}
"""What a number made while the model runs is kept as: as wide as Python's."""
IGNORED = frozenset({
    "aten._assert_tensor_metadata.default", "aten._assert_async.msg", "aten._assert_async.default",
    "aten._assert_scalar.default", "aten.sym_constrain_range.default", "aten.sym_constrain_range_for_size.default",
    "aten._functional_assert_async.msg", "aten._functional_sym_constrain_range.default",
})  # fmt: skip
"""Checks of what was exported: they compute nothing, and the compiler checks inputs itself."""


class Refused(Exception):
    """An operator, or one use of it, has no form here; the text says what is missing."""


def positional(node: Node) -> list[Arg]:
    """Arguments in the order of the schema, defaults filled in."""
    schema = getattr(node.op.target, "_schema", None)
    if schema is None:
        return list(node.args)
    given = []
    for index, argument in enumerate(schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        given.append(node.arg(index, argument.name, tuple(default) if isinstance(default, list) else default))
    return given


# --- types -----------------------------------------------------------------------------------------


def result_type(node: Node) -> torch.dtype:
    """Element type of the first result."""
    return node.results[0].tensor.dtype


def shape_of(node: Node) -> tuple[Dim, ...]:
    """Shape of the first result."""
    return node.results[0].tensor.shape


def kept_as(type_: object) -> tuple[torch.dtype, tuple[Dim, ...]]:
    """Element type and shape of the tensor that a value is kept as."""
    if isinstance(type_, TensorType):
        return type_.dtype, type_.shape
    if isinstance(type_, ScalarType):
        return SCALARS[type_.kind], ()
    raise Refused("a result that is absent")


def dtype_of(value: Value) -> torch.dtype:
    """Element type of a tensor, or the type that a number is kept as."""
    return kept_as(value.type)[0]


def promoted(*args: Arg) -> torch.dtype:
    """The type in which torch computes on mixed operands: tensors, 0-d tensors, numbers."""
    if len(args) == 2:
        return torch.result_type(*map(_stand_in, args))
    from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND, elementwise_dtypes

    kind = ELEMENTWISE_TYPE_PROMOTION_KIND.NO_OPMATH
    return elementwise_dtypes(*map(_stand_in, args), type_promotion_kind=kind)[1]


def _stand_in(arg: Arg) -> torch.Tensor | bool | int | float:
    if isinstance(arg, Value):
        if isinstance(arg.type, TensorType):
            return torch.empty((1,) * arg.type.rank, dtype=arg.type.dtype, device="meta")
        if isinstance(arg.type, ScalarType):
            return {"int": 1, "float": 1.0, "bool": True}[arg.type.kind]
    if isinstance(arg, (bool, int, float)):
        return arg
    raise Refused(f"cannot compute with {arg!r}")


def widest(dtypes: tuple[torch.dtype, ...]) -> torch.dtype:
    """The common type of tensors that are joined."""
    return reduce(torch.promote_types, dtypes)


# --- numbers ---------------------------------------------------------------------------------------


def number(arg: Arg) -> float:
    """A number that is known when compiling."""
    if isinstance(arg, (int, float)):
        return float(arg)
    raise Refused("needs a number that is known when compiling")


def whole(arg: Arg) -> int:
    """A whole number that is known when compiling."""
    if isinstance(arg, int):
        return int(arg)
    raise Refused("needs a whole number that is known when compiling")


def many(value: Arg, count: int, default: int = 1) -> list[int]:
    """One number per spatial dim of a window: kernel, stride, padding."""
    values = list(value) if isinstance(value, tuple) else [default if value is None else value]
    if not values:
        values = [default]
    if not all(isinstance(v, int) for v in values):
        raise Refused("strides, paddings and kernels must be known when compiling")
    return [int(v) for v in (values * count if len(values) == 1 else values)]  # type: ignore[arg-type]


def moved_dims(rank: int, source: Arg, destination: Arg) -> list[int]:
    """The permutation of ``movedim``."""
    sources = [whole(d) % rank for d in (source if isinstance(source, tuple) else (source,))]
    targets = [whole(d) % rank for d in (destination if isinstance(destination, tuple) else (destination,))]
    order = [-1] * rank
    for a, b in zip(sources, targets, strict=True):
        order[b] = a
    rest = iter(d for d in range(rank) if d not in sources)
    return [d if d >= 0 else next(rest) for d in order]


def spread_over(form: str, args: tuple[Arg, ...]) -> tuple[Arg, float, bool]:
    """Dims, correction and whether dims stay, of a deviation's overload: ``default``, ``dim`` or ``correction``."""
    if form == "default":
        return None, 1.0 if not args or args[0] else 0.0, False
    dim, second, third = (*args, None, None, None)[:3]
    if form == "dim":
        return dim, 1.0 if second is None or second else 0.0, bool(third)
    return dim, 1.0 if second is None else number(second), bool(third)
