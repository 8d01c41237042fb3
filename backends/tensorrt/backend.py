"""TensorRT: built in a child process for a GPU that need not be here."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from backends.base import CPU, DEFAULT, Backend, BuildOptions, Built, Device, Engine, FlowProof, Unsupported
from backends.child import run_child
from backends.tensorrt.library import DATACENTER, INSTALL, RTX, package, version
from ir import Graph, show
from ir.errors import MissingError, UnsupportedError

STEADY = {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
"""The builder orders some things by their addresses in memory: equal builds need equal addresses, see ``child``."""


class TensorRT(Backend):
    """Builds ``STEM.plan`` and ``STEM.json``; runs where that GPU is."""

    name = "tensorrt"
    install = INSTALL
    deviations = MappingProxyType({"nan": "statistics of infinities may give an infinity where torch gives NaN"})
    rows = "bucketed"

    def version(self) -> str | None:
        """Version of ``tensorrt_rtx``, or of datacenter ``tensorrt``."""
        name = package()
        return None if name is None else version(name)

    def why_not(self, device: Device) -> str:
        """Why this machine cannot build for a device."""
        from backends.tensorrt.legality import why_not

        return why_not(device, rtx=package() in (RTX, None))

    def unsupported(self, graph: Graph, device: Device = CPU) -> list[Unsupported]:
        """Operators without a native form, and what the device cannot do."""
        if device.kind != "cuda":
            return [Unsupported("device", "", self.why_not(device))]
        from backends.tensorrt.emit import emit_all

        return emit_all(graph, device, self._require())[1]

    def build(self, graph: Graph, folder: Path, options: BuildOptions = DEFAULT) -> Built:
        """Write the plan and what it requires."""
        name = self._require()
        device = options.device
        if reason := self.why_not(device):
            raise UnsupportedError(reason)
        if faults := self.unsupported(graph, device):
            raise UnsupportedError(_listing(faults, device))
        return _built(show(graph), folder, options, name)

    def simulated(self, graph: Graph, device: Device) -> Engine:
        """The network that would be built, run layer by layer in torch."""
        from backends.tensorrt.simulate import simulated

        self._require()
        return simulated(graph, device)

    def kit(self, graph: Graph, folder: Path, options: BuildOptions = DEFAULT) -> Built | None:
        """For GPUs that datacenter TensorRT builds for on their own machine."""
        from backends.tensorrt.legality import ON_TARGET
        from backends.tensorrt.on_target import write_kit

        device = options.device
        if device.kind != "cuda" or device.capability not in ON_TARGET:
            return None
        if faults := self.unsupported(graph, device):
            raise UnsupportedError(_listing(faults, device))
        remarks = write_kit(graph, folder, options)
        return Built(remarks, requires={DATACENTER: "any", "compute capability": f"{device.capability / 10:.1f}"})

    def finish(self, folder: Path, options: BuildOptions = DEFAULT) -> Built:
        """Build the plan of a kit with datacenter TensorRT, by the same emission."""
        from backends.tensorrt.on_target import read_kit, require_datacenter

        text, _ = read_kit(folder, options.stem)
        require_datacenter(options.device)
        return _built(text, folder, options, DATACENTER)

    def load(self, folder: Path, threads: int | None = None, stem: str = "engine") -> Engine:
        """The engine on the GPU of this machine."""
        from backends.tensorrt.engine import open_engine

        return open_engine(folder, stem)

    def _require(self) -> str:
        name = package()
        if name is None:
            raise MissingError("neither tensorrt_rtx nor tensorrt is installed", hint=self.install)
        return name


def _listing(faults: list[Unsupported], device: Device) -> str:
    lines = "\n".join(f"  - {fault}" for fault in faults)
    return f"{len(faults)} operator(s) cannot be built for {device.name}:\n{lines}"


def _built(text: str, folder: Path, options: BuildOptions, name: str) -> Built:
    """Let a child build the plan of a graph."""
    from backends.tensorrt.builder import UNBOUNDED

    device = options.device
    request = {
        "text": text, "folder": str(folder), "stem": options.stem, "device": device.name,
        "capability": device.capability, "package": name,
    }  # fmt: skip
    told = run_child(
        "backends.tensorrt.child", request, timeout=options.timeout, memory=options.memory, progress=options.progress,
        environment=STEADY,
    )  # fmt: skip
    remarks = [f"tensorrt: {warning}" for warning in told["warnings"]]
    if told["unbounded"]:
        remarks.append(f"tensorrt: built for sizes up to {UNBOUNDED} of {', '.join(told['unbounded'])}")
    if told["values"]:
        remarks.append(f"tensorrt: sizes follow from the numbers in {', '.join(told['values'])}: none below 0")
    flow = tuple(FlowProof(node, how, what, detail, lazy=lazy) for node, how, what, detail, lazy in told["flow"])
    requires = {name: version(name) or "", "compute capability": f"{device.capability / 10:.1f}"}
    return Built(tuple(remarks), told["facts"], flow, requires)
