"""From the emitted module to an executable for the CPU: every pass by name, none left to a default.

``tvm.compile`` alone neither fuses nor schedules on llvm; ``FuseOps`` fuses nothing in a function with a branch unless
``ConvertToDataflow`` ran; and after ``VMShapeLower`` every kernel must be marked free of aliases again, because LLVM
code generation keeps the mark of the function declared last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backends.tvm.cpu.schedule import schedule
from backends.tvm.cpu.target import Cpu

Heard = Callable[[str, float], None]


def compiled(module: Any, cpu: Cpu, heard: Heard) -> Any:
    """An executable of Relax's virtual machine.

    Args:
        module: from ``module_of``.
        cpu: the processor to compile for.
        heard: is told the phase and the fraction done.
    """
    import tvm
    from tvm import relax

    target = tvm.target.Target(cpu.target())
    with target:
        heard("fuse", 0.2)
        module = tvm.transform.Sequential(fusing())(module)
        heard("schedule", 0.3)
        module = schedule(cpu)(module)
        heard("lower", 0.4)
        module = tvm.transform.Sequential(lowering())(module)
        heard("generate code", 0.5)
        made = relax.build(module, target, relax_pipeline=tvm.transform.Sequential([]))
    heard("link", 0.9)
    return made


def fusing() -> list[Any]:
    """Operators become kernels, and kernels that follow each other one kernel. Reshapes stay views."""
    from tvm import relax

    return [
        relax.transform.ConvertToDataflow(),
        relax.backend.DispatchSortScan(),
        relax.transform.LegalizeOps(skip_ops=["relax.reshape"]),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(["main"]),
    ]


def lowering() -> list[Any]:
    """Down to what the virtual machine runs."""
    from tvm import relax

    return [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
        all_free_of_aliases(),
        shape_functions_in_order(),
    ]


def all_free_of_aliases() -> Any:
    """A pass that marks every kernel: its buffers do not overlap."""
    import tvm

    def run(module: Any, _context: Any) -> Any:
        for where, function in module.functions_items():
            if isinstance(function, tvm.tirx.PrimFunc):
                module[where] = function.with_attr("tirx.noalias", True)
        return module

    return tvm.transform.module_pass(run, opt_level=0, name="AllFreeOfAliases")


def shape_functions_in_order() -> Any:
    """A pass that orders the stores of a shape function by their slot: TVM leaves them in the order of a hash table."""
    import tvm
    import tvm_ffi
    from tvm import tirx

    def ordered(function: Any) -> Any:
        stores = list(function.body.seq) if isinstance(function.body, tirx.SeqStmt) else []
        if not stores or not all(isinstance(s, tirx.BufferStore) for s in stores):
            return function
        slots = [int(s.indices[0]) for s in stores]
        read: set[int] = set()

        def visit(node: Any) -> None:
            if (places := getattr(node, "indices", None)) is not None:
                read.add(int(places[0]))

        for store in stores:
            tvm_ffi.structural_walk(store.value, (object, visit), order="post")
        if read & set(slots):  # one store reads another: their order is their meaning
            return function
        in_order = [store for _, store in sorted(zip(slots, stores, strict=True), key=lambda pair: pair[0])]
        return function.with_body(tirx.SeqStmt(in_order))

    def run(module: Any, _context: Any) -> Any:
        for where, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc) and where.name_hint.startswith("shape_func"):
                module[where] = ordered(function)
        return module

    return tvm.transform.module_pass(run, opt_level=0, name="ShapeFunctionsInOrder")
