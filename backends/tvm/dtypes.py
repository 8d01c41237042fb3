"""Element types of torch and of TVM, torch's promotion of mixed operands, sizes as TIR expressions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch

from backends.arguments import Refused, whole
from backends.tvm.scalars import constant, unequal
from ir import Arg, Dim, show_dim

NAMES: Mapping[torch.dtype, str] = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.float8_e5m2: "float8_e5m2",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.uint16: "uint16",
    torch.uint32: "uint32",
    torch.uint64: "uint64",
    torch.bool: "bool",
}
HALF = frozenset({torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2})


def name_of(dtype: torch.dtype) -> str:
    """TVM's name of an element type."""
    if dtype not in NAMES:
        raise Refused(f"TVM has no elements of type {dtype}")
    return NAMES[dtype]


def wide(dtype: torch.dtype) -> torch.dtype:
    """What torch computes in: the half precisions in f32, rounded once at the end."""
    return torch.float32 if dtype in HALF else dtype


def axis_of(rank: int, dim: Arg) -> int:
    """A dim counted from the start."""
    return whole(dim) % max(rank, 1)


def prim(dim: Dim, variable: Callable[[str], Any]) -> Any:
    """A size as a TIR expression over the variables of the symbols.

    Raises:
        Refused: the size is no function that TIR has.
    """
    from tvm import tirx

    if isinstance(dim, int):
        return tirx.const(dim, "int64")
    if dim.is_Symbol:
        return variable(dim.name)
    if dim.is_Integer:
        return tirx.const(int(dim), "int64")
    kind = type(dim).__name__
    if kind == "Mul":
        top, bottom = dim.as_numer_denom()
        if not bottom.is_Integer:
            raise Refused(f"a size of {show_dim(dim)}")
        if int(bottom) != 1:
            return tirx.floordiv(prim(top, variable), prim(int(bottom), variable))
    args = [prim(a, variable) for a in dim.args]
    if kind == "Add":
        return reduce(lambda a, b: a + b, args)
    if kind == "Mul":
        return reduce(lambda a, b: a * b, args)
    if kind == "Pow" and dim.exp.is_Integer and int(dim.exp) > 0:
        return reduce(lambda a, b: a * b, [args[0]] * int(dim.exp))
    if kind in ("FloorDiv", "CleanDiv"):
        return tirx.floordiv(*args)
    if kind == "CeilDiv":
        return tirx.floordiv(args[0] + args[1] - 1, args[1])
    if kind in ("Mod", "PythonMod"):
        return tirx.floormod(*args)
    if kind == "ModularIndexing":
        return tirx.floormod(tirx.floordiv(args[0], args[1]), args[2])
    if kind in ("Max", "Min"):
        return reduce(tirx.max if kind == "Max" else tirx.min, args)
    raise Refused(f"a size of {show_dim(dim)}")


def cast(expr: Any, dtype: torch.dtype) -> Any:
    """A TIR expression in another type, as torch converts."""
    from tvm import tirx

    if not hasattr(expr, "ty"):  # a comparison that is not an expression yet
        expr = expr.asobject()
    have, want = str(expr.ty.dtype), name_of(dtype)
    if have == want:
        return expr
    if want == "bool":
        expr = tirx.Cast("float32", expr) if have in {NAMES[d] for d in HALF} else expr
        return unequal(expr, constant(0, expr))
    if have == "bool" and dtype.is_floating_point:
        return tirx.Select(expr, tirx.const(1, want), tirx.const(0, want))
    if have in ("int64", "float64") and dtype in HALF:
        return tirx.Cast(want, tirx.Cast("float32", expr))
    return tirx.Cast(want, expr)


def literal(value: bool | int | float, dtype: torch.dtype) -> Any:
    """A number as a TIR constant, converted as torch does."""
    from tvm import tirx

    if not isinstance(value, (bool, int, float)):
        raise Refused(f"cannot compute with {value!r}")
    try:
        exact = torch.tensor(value).to(dtype).item() if not dtype.is_floating_point else float(value)
    except (OverflowError, RuntimeError) as error:
        raise Refused(f"{value!r} is no {dtype}") from error
    return tirx.const(exact, name_of(dtype))
