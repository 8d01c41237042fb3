"""TensorRT: built in a child process for a GPU that need not be here."""

from __future__ import annotations

from pathlib import Path

from backends.base import CPU, DEFAULT, Backend, BuildOptions, Built, Device, Engine, FlowProof, Unsupported
from backends.child import run_child
from backends.tensorrt.library import INSTALL, RTX, package, version
from ir import Graph, show
from ir.errors import MissingError, UnsupportedError


class TensorRT(Backend):
    """Builds ``STEM.plan`` and ``STEM.json``; runs where that GPU is."""

    name = "tensorrt"
    install = INSTALL

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
            listing = "\n".join(f"  - {fault}" for fault in faults)
            raise UnsupportedError(f"{len(faults)} operator(s) cannot be built for {device.name}:\n{listing}")
        request = {
            "text": show(graph), "folder": str(folder), "stem": options.stem, "device": device.name,
            "capability": device.capability, "package": name,
        }  # fmt: skip
        told = run_child(
            "backends.tensorrt.child", request, timeout=options.timeout, memory=options.memory,
            progress=options.progress,
        )  # fmt: skip
        from backends.tensorrt.builder import UNBOUNDED

        remarks = [f"tensorrt: {warning}" for warning in told["warnings"]]
        if told["unbounded"]:
            remarks.append(f"tensorrt: built for sizes up to {UNBOUNDED} of {', '.join(told['unbounded'])}")
        flow = tuple(FlowProof(node, how, what, detail, lazy=lazy) for node, how, what, detail, lazy in told["flow"])
        requires = {name: version(name) or "", "compute capability": f"{device.capability / 10:.1f}"}
        return Built(tuple(remarks), told["facts"], flow, requires)

    def load(self, folder: Path, threads: int | None = None, stem: str = "engine") -> Engine:
        """The engine on the GPU of this machine."""
        from backends.tensorrt.engine import open_engine

        return open_engine(folder, stem)

    def _require(self) -> str:
        name = package()
        if name is None:
            raise MissingError("neither tensorrt_rtx nor tensorrt is installed", hint=self.install)
        return name
