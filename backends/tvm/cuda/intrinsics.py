"""The tensor-core intrinsics that our schedules ask for, registered with TVM.

TVM registers some ninety of them when ``tvm.s_tir.tensor_intrin`` is first imported, each parsed from Python source:
half a minute in every process that compiles. Here the import is let through without the parsing, and only those
that a schedule names are made. For a process that builds for CUDA and does nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

TILE = 16
"""Rows, columns and depth of one fragment."""

SHARED = "shared.dyn"
SHORT = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "int8": "s8", "int32": "s32"}
"""How the names of intrinsics spell a dtype."""


def register(inputs: str, sums: str) -> dict[str, str]:
    """Register what one kind of matmul needs, with the second operand transposed; returns step -> name.

    Args:
        inputs: dtype of the operands: float16, bfloat16 or int8.
        sums: dtype of the accumulator: float32 or int32.
    """
    made = light_module()
    sizes = (TILE, TILE, TILE)
    operand, total = SHORT[inputs], SHORT[sums]
    wanted: tuple[tuple[str, str, Callable[[], Any]], ...] = (
        ("load_a", f"{operand}_a", lambda: made.get_wmma_load_intrin(*sizes, inputs, SHARED, False, False)),
        ("load_b", f"{operand}_b", lambda: made.get_wmma_load_intrin(*sizes, inputs, SHARED, True, True)),
        ("fill", total, lambda: made.get_wmma_fill_intrin(*sizes, sums)),
        ("multiply", f"{operand}_{total}", lambda: made.get_wmma_sync_intrin(*sizes, inputs, sums, True)),
        ("store", total, lambda: made.get_wmma_store_intrin(*sizes, sums, SHARED)),
    )
    from tvm.s_tir import TensorIntrin

    names = {}
    for step, kind, make in wanted:
        names[step] = f"penstock_wmma_{step}_{kind}"
        if TensorIntrin.get(names[step], allow_missing=True) is None:
            TensorIntrin.register(names[step], *make())
    return names


def light_module() -> Any:
    """``tvm.s_tir.tensor_intrin.cuda``, imported without the intrinsics that it makes for itself."""
    from tvm.s_tir import TensorIntrin
    from tvm.script import tirx

    def unparsed(function: Any = None, **_: Any) -> Any:
        return unparsed if function is None else function

    with patch.object(tirx, "prim_func", unparsed), patch.object(TensorIntrin, "register"):
        from tvm.s_tir.tensor_intrin import cuda
    return cuda
