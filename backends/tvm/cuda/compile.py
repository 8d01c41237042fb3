"""Relax to one shared library with cubins, in a process of its own: it loads a stand-in driver and patches a compiler.

``prepare`` comes before the first import of TVM.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from backends.tvm.cuda import archs, cubins, stub, toolchain
from backends.tvm.link import link, linker_for
from ir.errors import BuildError

_FAST = b"--use_fast_math"


def prepare(tools: toolchain.Toolchain) -> None:
    """Make TVM's CUDA runtime loadable on a machine without a GPU."""
    toolchain.load_runtime(tools.root)
    stub.load_driver()


def compile_module(
    module: Any,
    arch: archs.Arch,
    library: Path,
    tools: toolchain.Toolchain,
    progress: Callable[[str, float], None] = lambda phase, fraction: None,
) -> dict[str, Any]:
    """Compile a Relax module for one architecture and write the library.

    Returns:
        ``facts`` of the library, ``branches`` of the VM's code by function, ``declined`` rules.

    Raises:
        BuildError: no kernel schedule works, or the compiler refused the source.
        MissingError: no linker.
    """
    import tvm
    import tvm_ffi
    from tvm.support import nvcc

    from backends.tvm.cuda import schedules

    host = triple(arch.host)
    linker_for(host.partition("-")[0])  # told before the long work
    target = schedules.target_of(arch, host)
    declined: list[str] = []

    def cubin(source: str) -> bytes:
        progress("nvrtc" if tools.compiler == "nvrtc" else "nvcc", 0.5)
        with _exact():
            return bytes(nvcc.compile_cuda(source, target_format="cubin", arch=arch.name, compiler=tools.compiler))

    tvm_ffi.register_global_func("tvm_callback_cuda_compile", cubin, override=True)
    progress("schedules", 0.1)
    try:
        with target, tvm.transform.PassContext(opt_level=3, config=schedules.NO_REUSE):
            made = tvm.compile(module, target=target, relax_pipeline=schedules.pipeline(target, declined))
    except (RuntimeError, ValueError, TypeError) as error:  # what TVM raises: its errors are of these kinds
        raise BuildError(f"TVM cannot build for {arch.name}: {sentence(error)}") from error
    progress("library", 0.9)
    link(made, library, host.partition("-")[0])
    facts = cubins.checked(library.read_bytes(), arch.capability)
    return {"facts": facts, "code": made.as_text(), "declined": sorted(set(declined))}


def triple(host: str) -> str:
    """The machine that the library's processor code is for: this one's kind, unless the GPU comes with another."""
    return host or f"{platform.machine()}-linux-gnu"


def sentence(error: Exception) -> str:
    """The last thing that TVM or the compiler said, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "error" in line.lower()] or lines[-1:] or [type(error).__name__]
    return " ".join(told[0].split())[:300]


def _exact() -> Any:
    """TVM asks NVRTC for fast math always, whose sine of a large angle (rotary embeddings) is far off."""
    try:
        from cuda.bindings import nvrtc
    except ImportError:
        from contextlib import nullcontext

        return nullcontext()
    real = nvrtc.nvrtcCompileProgram

    def compiled(program: Any, count: int, options: Sequence[bytes]) -> Any:
        kept = [option for option in options if option != _FAST]
        return real(program, len(kept), kept)

    return patch.object(nvrtc, "nvrtcCompileProgram", compiled)
