"""Apache TVM: our own kernels and schedules, compiled to one shared library."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from backends.base import CPU, DEFAULT, Backend, BuildOptions, Built, Device, Engine, Unsupported
from backends.child import run_child
from backends.tvm.cuda.build import build_cuda, unsupported_cuda, why_not_cuda
from backends.tvm.flow import proofs
from backends.tvm.payload import FFI, TVM, read
from ir import Graph, show
from ir.errors import MissingError


class Tvm(Backend):
    """Builds ``STEM.so`` in a child process and runs it with TVM's virtual machine."""

    name = "tvm"
    rows = "bucketed"
    install = 'pip install "penstock[tvm]"'
    patient = True
    deviations = MappingProxyType({"nan": "gelu and the mean of var_mean may be infinite where torch gives NaN"})

    def version(self) -> str | None:
        """Version of the installed package."""
        try:
            metadata.version("apache-tvm-ffi")
            return metadata.version("apache-tvm")
        except metadata.PackageNotFoundError:
            return None

    def why_not(self, device: Device) -> str:
        """Processors always; GPUs whose kernels we can schedule."""
        if device.kind not in ("cpu", "cuda"):
            return "TVM is driven here for processors and NVIDIA GPUs only"
        return why_not_cuda(device) if device.kind == "cuda" else ""

    def unsupported(self, graph: Graph, device: Device = CPU) -> list[Unsupported]:
        """Operators without a form here, and loops."""
        self._require()
        if device.kind == "cuda":
            return unsupported_cuda(graph)
        from backends.tvm.cpu.forms import forms_of
        from backends.tvm.cpu.target import cpu_here
        from backends.tvm.emit import unsupported

        return unsupported(graph, forms_of(cpu_here()))

    def build(self, graph: Graph, folder: Path, options: BuildOptions = DEFAULT) -> Built:
        """Write ``STEM.so``, ``STEM.packed.safetensors`` and ``STEM.tvm.json``."""
        self._require()
        if options.device.kind == "cuda":
            return build_cuda(graph, folder, options)
        answer = run_child(
            "backends.tvm.child",
            {"text": show(graph), "folder": str(folder.resolve()), "stem": options.stem, "level": ""},
            timeout=options.timeout,
            memory=options.memory,
            progress=options.progress,
        )
        flags = " ".join(answer["flags"])
        requires = {"apache-tvm": TVM, "apache-tvm-ffi": FFI, **({"cpu": flags} if flags else {})}
        return Built(facts=answer["facts"], flow=proofs(graph, answer["code"]), requires=requires)

    def load(self, folder: Path, threads: int | None = None, stem: str = "engine") -> Engine:
        """A virtual machine over the library."""
        self._require()
        from backends.tvm.cuda.engine import TvmCudaEngine, cuda_arch
        from backends.tvm.engine import TvmEngine

        if cuda_arch(read(folder / f"{stem}.tvm.json")) is not None:
            return TvmCudaEngine(folder, stem)
        return TvmEngine(folder, stem, threads)

    def _require(self) -> None:
        """The very pair of versions that was tried: another ffi crashes the process instead of raising."""
        for package, wanted in (("apache-tvm", TVM), ("apache-tvm-ffi", FFI)):
            try:
                found = metadata.version(package)
            except metadata.PackageNotFoundError:
                raise MissingError(f"{package} is not installed", hint=self.install) from None
            if found != wanted:
                raise MissingError(
                    f"{package} {found} is installed, the TVM engine needs {wanted}",
                    hint=f'pip install "{package}=={wanted}"',
                )
