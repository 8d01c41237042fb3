"""Cells of operators: each call of the table at each element type that torch itself computes it in."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch

from ir import PenstockError, interpret
from tests.backends.cases import SIZES, Built, Call
from tests.backends.operators import FAMILIES

FLOATS, WHOLES = ("f32", "f16", "bf16", "f64"), ("i64", "i32", "i8", "u8", "bool")
COLUMNS = (*FLOATS, *WHOLES, "f32!", "f32?", "i64!")
"""Element types; with ``!`` the content is extreme (infinities, negative zero, denormal; beyond 32 bits), ``?`` NaN."""
FEW = {"other names": ("f32", "f16", "i64"), "numbers": ("f32", "i64", "bool"), "quantized": ("f32", "i8")}
"""Families whose forms are those of others, or made for one element type."""
TOLERANCE = {"quantized": 2e-2}
"""A rounding of activations falls differently with the last bit of the number rounded."""
ODD = ("pointwise", "reductions", "products", "norms", "decomposed")


@dataclass(frozen=True)
class Cell:
    """A call of the table at one element type."""

    family: str
    form: str
    column: str
    call: Call

    @property
    def op(self) -> str:
        """Name of the operator."""
        return self.call.name


@lru_cache(maxsize=8)
def cells(family: str, column: str) -> tuple[Cell, ...]:
    """Those of one family at one element type, which go into few graphs."""
    return tuple(_cells(family, column))


def listed(rows: Mapping[str, Mapping[str, Mapping[str, str]]], family: str, column: str) -> tuple[Cell, ...]:
    """The same, read from the rows of a matrix: nothing is tried out."""
    calls = {c.form: c for c in FAMILIES.get(family, ())}
    kind = column[-1] if column[-1] in "!?" else ""
    return tuple(
        Cell(family, form, column, calls[form].at(column.rstrip("!?"), kind) if calls[form].lead else calls[form])
        for form, engines in rows.items()
        if form in calls and any(column in found for found in engines.values())
    )


def _cells(family: str, column: str) -> Iterator[Cell]:
    dtype, odd = column.rstrip("!?"), column[-1] if column[-1] in "!?" else ""
    if odd and family not in ODD:
        return
    seen = set()
    for call in FAMILIES[family]:
        lead = call.lead
        if family in FEW and column not in FEW[family]:
            continue
        if (not lead and column != "f32") or (lead and lead not in FLOATS and dtype in FLOATS):
            continue
        if ("]^" in repr(call) and column != "i64") or ("]#" in repr(call) and column in ("bool", "f32?")):
            continue
        if family == "quantized" and lead != column:  # scales are float32
            continue
        made = call.at(dtype, odd) if lead else call
        if odd and (repr(made) == repr(call.at(dtype)) or _undefined(made)):
            continue
        if call.form in seen or not _torch_has(made):
            continue
        seen.add(call.form)
        yield Cell(family, call.form, column, made)


def _undefined(call: Call) -> bool:
    """Numbers converted out of range, of which C++ says nothing; three factors, and a running mean, whose order may
    make a NaN of inf."""
    if call.name in ("aten.bilinear.default", "aten.var_mean.correction", "aten.std_mean.correction"):
        return True
    to = [a for a in (*call.args, *call.kwargs.values()) if isinstance(a, torch.dtype)]
    return bool(to) and not to[0].is_floating_point and to[0] != torch.bool


def _torch_has(call: Call) -> bool:
    """Whether torch has a kernel: its meta kernel may promise more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            built = Built([call])
            for seed, sizes in enumerate(SIZES):
                interpret(built.graph, built.inputs(sizes, seed))
        except (PenstockError, RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, ArithmeticError):
            return False
    return True
