"""Kernels written as plain loops (scatter, nonzero, masked writes), given threads.

A loop marked parallel that stands before every other gets one thread per iteration; the rest runs in one thread, which
keeps the order that such kernels rely on. Each part becomes a kernel of its own, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import tirx

BLOCK = 128
"""Threads of a block."""


def bind_plain_loops() -> Any:
    """A pass for before the schedules: whatever calls itself scheduled then is written as plain loops."""

    def run(module: Any, _context: Any) -> Any:
        for where, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc) and "tirx.is_scheduled" in function.attrs:
                module[where] = function.with_body(_threaded(function.body))
        return module

    return tvm.transform.module_pass(run, opt_level=0, name="BindPlainLoops")


def _threaded(body: Any) -> Any:
    statements = list(body) if isinstance(body, tirx.SeqStmt) else [body]
    kernels, rest, ordered = [], [], False
    for statement in statements:
        loop = isinstance(statement, tirx.For)
        if loop and not ordered and statement.kind == tirx.ForKind.PARALLEL:
            kernels.append(_spread(statement))
        else:
            ordered = ordered or loop
            rest.append(statement)
    if ordered:
        alone = tirx.SeqStmt(rest) if len(rest) > 1 else rest[0]
        kernels.append(_launched(1, 1, lambda block, thread: alone))
    return tirx.SeqStmt(kernels) if len(kernels) > 1 else kernels[0]


def _spread(loop: Any) -> Any:
    """A loop of at most one iteration in each of as many threads as it had iterations."""
    dtype = loop.loop_var.ty.dtype

    def once(block: Any, thread: Any) -> Any:
        at = tirx.Cast(dtype, block) * BLOCK + tirx.Cast(dtype, thread)
        left = tirx.max(tirx.min(loop.extent - at, tirx.const(1, dtype)), tirx.const(0, dtype))
        return tirx.For(loop.loop_var, loop.min + at, left, tirx.ForKind.SERIAL, loop.body)

    return _launched(tirx.floordiv(loop.extent + (BLOCK - 1), BLOCK), BLOCK, once)


def _launched(blocks: Any, threads: int, body: Callable[[Any, Any], Any]) -> Any:
    block, thread = tirx.Var("block", "int32"), tirx.Var("thread", "int32")
    made = body(block, thread)
    for tag, variable, extent in (("threadIdx.x", thread, threads), ("blockIdx.x", block, blocks)):
        size = tirx.const(extent, "int32") if isinstance(extent, int) else tirx.Cast("int32", extent)
        axis = tirx.IterVar(tvm.ir.Range(0, size), variable, tirx.IterVar.ThreadIndex, tag)
        made = tirx.AttrStmt(axis, "thread_extent", size, made)
    return made
