"""From Relax to scheduled kernels for CUDA: which passes, which schedules, in what order."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, s_tir, tirx
from tvm.relax.backend import gpu_generic
from tvm.s_tir import dlight
from tvm.s_tir.dlight.gpu.base import GPUScheduleRule
from tvm.target import Target

from backends.tvm.cuda.archs import SHARED_MEMORY, THREADS, WARP, Arch
from backends.tvm.cuda.intrinsics import light_module
from backends.tvm.cuda.tensor_cores import TensorCoreMatmul
from backends.tvm.cuda.threads import bind_plain_loops

NO_REUSE = {"tirx.disable_storage_rewrite": True}
"""Config of the pass context. The rewrite lets sums in float32 share the buffer of operands in float16, which the
pass after it then refuses; another pass packs shared memory anyway."""


class Shielded(GPUScheduleRule):
    """A rule that steps aside when it raises, as dlight's do on reductions over one element and other rare loops."""

    def __init__(self, rule: GPUScheduleRule, declined: list[str]) -> None:
        self._rule, self._declined = rule, declined

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """What the rule says; ``None`` when it fails."""
        try:
            return self._rule.apply(func, target, tunable)
        except Exception as error:  # noqa: BLE001  (rules raise whatever a schedule primitive or an assert raises)
            said = " ".join(str(error).split())[:120]
            self._declined.append(f"{type(self._rule).__name__}: {type(error).__name__} {said}".strip())
            return None


class PlainMatmul(dlight.gpu.Matmul):
    """Dlight's matmul for the other cores; its own way to tensor cores sums in float16."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """The schedule, or ``None`` for a function that is no matmul."""
        return super().apply(func.with_attr("dlight.do_not_tensorize", True), target, tunable)


def target_of(arch: Arch, host: str) -> Target:
    """The target, without asking a device: plain arch and explicit limits."""
    return Target(
        {
            "kind": "cuda",
            "arch": arch.name,
            "max_shared_memory_per_block": SHARED_MEMORY,
            "max_threads_per_block": THREADS,
            "thread_warp_size": WARP,
        },
        host={"kind": "llvm", "mtriple": host},
    )


def pipeline(target: Target, declined: list[str]) -> Any:
    """The Relax pipeline: legal, fused, scheduled, lowered to VM calls.

    Args:
        target: to build for.
        declined: gets what each rule that raised said.
    """
    light_module()  # before a rule of dlight's imports it in full
    rules = [
        TensorCoreMatmul(),
        PlainMatmul(),
        dlight.gpu.GEMV(),
        dlight.gpu.Reduction(),
        dlight.gpu.GeneralReduction(),
        dlight.gpu.Fallback(),
    ]
    return tvm.transform.Sequential(
        [
            *gpu_generic.library_dispatch_passes(target),
            relax.transform.ConvertToDataflow(),  # a function with a branch has no dataflow, and nothing would fuse
            relax.transform.LegalizeOps(skip_ops=["relax.reshape"]),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(["main"]),
            bind_plain_loops(),
            dlight.ApplyDefaultSchedule(*(Shielded(rule, declined) for rule in rules)),
            # a reshape stays Relax's own, a view: the pass that would look for kernels which only reshape stumbles on
            # kernels of plain loops
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            *gpu_generic.finalize_passes(target),
        ]
    )
