"""TVM for a GPU that need not be here."""

from __future__ import annotations

from pathlib import Path

from backends.base import BuildOptions, Built, Device, Unsupported
from backends.child import run_child
from backends.tvm.cuda.archs import ARCHS, arch_of
from backends.tvm.cuda.toolchain import toolchain
from backends.tvm.flow import proofs
from backends.tvm.payload import FFI, TVM
from ir import Graph, show

NEVER_RUN = "compiled, never run: it was built without such a GPU"


def why_not_cuda(device: Device) -> str:
    """Why nothing can be built for a GPU, empty when it can."""
    if arch_of(device.capability) is None:
        known = ", ".join(f"sm_{arch.capability} ({arch.gpus})" for arch in ARCHS)
        return f"TVM kernels are made for {known}; not for sm_{device.capability}"
    return ""


def unsupported_cuda(graph: Graph) -> list[Unsupported]:
    """Everything in a graph that has no CUDA kernel here."""
    from backends.tvm.cuda.forms import FORMS
    from backends.tvm.emit import unsupported

    return unsupported(graph, FORMS)


def build_cuda(graph: Graph, folder: Path, options: BuildOptions) -> Built:
    """Write ``STEM.so`` with cubins, ``STEM.packed.safetensors`` and ``STEM.tvm.json``.

    Raises:
        UnsupportedError: lists every operator without a form here.
        MissingError: no CUDA compiler, no linker for the machine of the GPU.
        BuildError: TVM or the compiler failed, or made code for another GPU.
        ResourceError: out of time or memory.
    """
    tools = toolchain()
    answer = run_child(
        "backends.tvm.cuda.child",
        {
            "text": show(graph),
            "folder": str(folder.resolve()),
            "stem": options.stem,
            "capability": options.device.capability,
        },
        timeout=options.timeout,
        memory=options.memory,
        progress=options.progress,
        environment=tools.environment(),
    )
    remarks = [NEVER_RUN]
    if not answer["facts"]["tensor_core_kernels"]:
        remarks.append("no kernel uses tensor cores: they multiply f16, bf16 and int8, not f32")
    remarks += [f"a schedule rule stepped aside: {text}" for text in answer["declined"]]
    arch = arch_of(options.device.capability)
    assert arch is not None
    requires = {
        "apache-tvm": TVM,
        "apache-tvm-ffi": FFI,
        "cuda": f"a GPU of compute capability {arch.capability / 10:g}, a driver for CUDA 13",
    }
    if arch.host:
        requires["processor"] = arch.host.split("-")[0]
    return Built(tuple(remarks), answer["facts"], proofs(graph, answer["code"]), requires)
