"""How the neutral kernels run on a processor: chains inlined, outer loops over threads, the innermost in vectors."""

from __future__ import annotations

import math
from typing import Any

from backends.tvm.cpu.target import Cpu

_SMALL = 8192  # elements that are not worth waking threads for
_CHUNK = 1024  # elements of a task, where there is one loop only


def schedule(cpu: Cpu) -> Any:
    """A pass over all kernels that are not scheduled yet."""
    import tvm

    def run(module: Any, _context: Any) -> Any:
        for where, function in module.functions_items():
            if isinstance(function, tvm.tirx.PrimFunc) and not (function.attrs or {}).get("tirx.is_scheduled"):
                module[where] = scheduled(function, cpu)
        return module

    return tvm.transform.module_pass(run, opt_level=0, name="ScheduleForCpu")


def scheduled(function: Any, cpu: Cpu) -> Any:
    """The kernel with its loops arranged; as it was, where TVM does not allow that."""
    import tvm
    from tvm import s_tir

    try:
        plan = s_tir.Schedule(tvm.IRModule({"main": function}), debug_mask="none", error_render_level="none")
        for block in _blocks(plan):
            _inline(plan, block)
        for block in _blocks(plan):
            _arrange(plan, block, cpu)
        made = plan.mod["main"]
    except (RuntimeError, ValueError, TypeError):
        return function  # runs as written, on one thread
    return made.with_attr("tirx.is_scheduled", True)


def _blocks(plan: Any) -> list[Any]:
    """All blocks that compute, in order."""
    root = plan.get_sblock("root")
    return list(plan.get_child_blocks(root))


def _inline(plan: Any, block: Any) -> None:
    """Let readers of an element compute it, where that costs no more."""
    readers = plan.get_consumers(block)
    if not readers or any(int(i.iter_type) != 0 for i in plan.get(block).iter_vars):
        return
    if len(readers) > 1 or any(_reduces(plan, r) for r in readers):
        return
    try:
        plan.compute_inline(block)
    except (RuntimeError, ValueError, TypeError):
        return  # kept as a buffer of its own


def _reduces(plan: Any, block: Any) -> bool:
    return any(int(i.iter_type) == 2 for i in plan.get(block).iter_vars)


def _extent(plan: Any, loop: Any) -> int | None:
    extent = plan.get(loop).extent
    value = getattr(extent, "value", None)
    return int(value) if value is not None else None


def _arrange(plan: Any, block: Any, cpu: Cpu) -> None:
    kinds = [int(i.iter_type) for i in plan.get(block).iter_vars]
    loops = list(plan.get_loops(block))
    if not loops or len(kinds) != len(loops):
        return
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 0]
    reduced = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 2]
    if not spatial:
        return
    extents = [_extent(plan, loop) for loop in spatial]
    small = all(e is not None for e in extents) and math.prod(e or 1 for e in extents) * (64 if reduced else 1) < _SMALL
    last = extents[-1]
    wide = last is not None and last % cpu.lanes == 0 and last >= cpu.lanes
    if reduced:
        _arrange_sum(plan, block, spatial, reduced, wide and len(spatial) > 1, small, cpu)
        return
    inner = spatial[-1]
    if wide:
        spatial[-1], inner = plan.split(inner, [None, cpu.lanes])
        plan.vectorize(inner)
        outer = spatial
    elif len(spatial) == 1:
        outer, inner = plan.split(inner, [None, _CHUNK])
        if not small:
            plan.parallel(outer)
        return
    else:
        outer = spatial[:-1]
    fused = plan.fuse(*outer) if len(outer) > 1 else outer[0]
    if not small:
        plan.parallel(fused)


def _arrange_sum(
    plan: Any, block: Any, spatial: list[Any], reduced: list[Any], wide: bool, small: bool, cpu: Cpu
) -> None:
    """Threads over results; where results lie side by side, vectors of them inside the sum."""
    if wide:
        columns, lanes = plan.split(spatial[-1], [None, cpu.lanes])
        plan.reorder(*spatial[:-1], columns, *reduced, lanes)
        outer = [*spatial[:-1], columns]
    else:
        outer = spatial
    fused = plan.fuse(*outer) if len(outer) > 1 else outer[0]
    if wide:
        plan.vectorize(lanes)
    if not small:
        plan.parallel(fused)
    plan.decompose_reduction(block, reduced[0])
