"""``python -m tests.backends.cuda_on_cpu.run CASE``: build for CUDA, run on the emulated GPU, print JSON.

A process of its own: the emulated driver takes the place of a real one.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ir import Graph, interpret, parse
from tests.backends.cuda_on_cpu.emulator import Emulator
from tests.backends.cuda_on_cpu.models import block, int8
from tests.conformance.regions import EXIT, NESTED

Inputs = Mapping[str, torch.Tensor]


class Lab:
    """Builds graphs and runs them on the emulated GPU."""

    def __init__(self, folder: Path) -> None:
        from backends.tvm.cuda.toolchain import toolchain

        self.tools = toolchain()
        os.environ.update(self.tools.environment())
        self._folder, self._count = folder, 0
        self.emulator = Emulator(folder)
        from tvm.support import nvcc

        self.source = ""
        real = nvcc.compile_cuda

        def noted(source: str, **options: Any) -> Any:
            self.source = source
            return real(source, **options)

        nvcc.compile_cuda = noted

    def build(self, graph: Graph, capability: int = 89) -> tuple[Path, Any, dict[str, Any]]:
        """The library for a host of this kind, the emitted module, what was found out."""
        from backends.tvm.cuda.archs import arch_of
        from backends.tvm.cuda.compile import compile_module
        from backends.tvm.cuda.forms import FORMS
        from backends.tvm.emit import module_of

        self._count += 1
        library = self._folder / f"built{self._count}.so"
        emitted = module_of(graph, FORMS)
        arch = arch_of(capability)
        assert arch is not None
        return library, emitted, compile_module(emitted.module, replace(arch, host=""), library, self.tools)

    def run(
        self, graph: Graph, inputs: Sequence[Inputs], *changes: tuple[Callable[[str], str], Sequence[Inputs]]
    ) -> list[dict[str, Any]]:
        """Facts of the build, and per input: the largest error against the interpreter, and launches.

        Each change of the CUDA source gives one more answer, on its own inputs.
        """
        library, emitted, made = self.build(graph)
        answers = []
        for number, (change, given) in enumerate([(str, inputs), *changes]):
            copy = library.with_name(f"{number}_{library.name}")  # a path that was loaded once stays what it was
            copy.write_bytes(library.read_bytes())
            self.emulator.use(change(self.source))
            answers.append(made["facts"] | self._runs(copy, emitted, graph, given))
        return answers

    def _runs(self, library: Path, emitted: Any, graph: Graph, inputs: Sequence[Inputs]) -> dict[str, Any]:
        import tvm

        device = tvm.cuda(0)
        run = tvm.runtime.vm.VirtualMachine(tvm.runtime.load_module(str(library)), device)["main"]
        held = {"param": graph.weights, "packed": emitted.packed}
        errors, launches = [], []
        for given in inputs:
            tensors = [held.get(a.kind, given)[a.name] for a in emitted.arguments]
            before = self.emulator.launches
            results = run(*(tvm.runtime.from_dlpack(t.contiguous()).copyto(device) for t in tensors))
            launches.append(self.emulator.launches - before)
            found = [torch.from_dlpack(r.copyto(tvm.cpu())) for r in results]
            errors.append(max(_error(w, f) for w, f in zip(interpret(graph, given).values(), found, strict=True)))
        return {"errors": errors, "launches": launches, "shared": self.emulator.shared}


def _error(want: torch.Tensor, found: torch.Tensor) -> float:
    """The largest difference relative to the largest value; 1e9 for another shape or for NaN."""
    if want.shape != found.shape:
        return 1e9
    gap = float((want.double() - found.double()).abs().max() / want.double().abs().max().clamp(min=1e-30))
    return gap if gap == gap else 1e9


def graph_of(text: str) -> Graph:
    """A graph with random weights, the same in every run."""
    graph = parse(text)
    seeded = torch.Generator().manual_seed(0)
    for value, spec in graph.inputs.items():
        if spec.kind == "param":
            shape = tuple(int(d) for d in value.tensor.shape)
            scale = max(shape[-1] if shape else 1, 1) ** -0.5
            made = torch.randn(shape, generator=seeded) * (40 if value.tensor.dtype == torch.int8 else scale)
            graph.weights.add(spec.name, made.to(value.tensor.dtype))
    return graph


def branches(lab: Lab) -> dict[str, Any]:
    """Two graphs with branches, each side taken."""
    positive, negative = torch.rand(5, 4), -torch.rand(5, 4)
    return {
        "exit": lab.run(graph_of(EXIT), [{"x": positive}, {"x": negative}])[0],
        "nested": lab.run(graph_of(NESTED), [{"x": positive}, {"x": negative}, {"x": negative[:1]}])[0],
    }


def transformer(lab: Lab) -> dict[str, Any]:
    """A block in f16 at odd sizes; the same with a barrier taken out, and with the second operand read askew."""
    graph = graph_of(block("f16"))
    seeded = torch.Generator().manual_seed(1)
    inputs = [{"x": torch.randn(b, s, 128, generator=seeded).half()} for b, s in ((1, 1), (2, 7), (1, 66))]
    load = "wmma::load_matrix_sync("

    def askew(source: str) -> str:
        head, _, tail = source.rpartition(load)
        return head + load + tail.replace(", 40)", ", 48)", 1)

    def unguarded(source: str) -> str:
        return source.replace("__syncthreads();", ";")

    found = lab.run(graph, inputs, (unguarded, inputs[1:2]), (askew, inputs[1:2]))
    return dict(zip(("right", "no_barrier", "askew"), found, strict=True))


def integers(lab: Lab) -> dict[str, Any]:
    """An int8 linear."""
    inputs = [{"x": torch.randn(n, 64, generator=torch.Generator().manual_seed(n))} for n in (1, 70)]
    return lab.run(graph_of(int8()), inputs)[0]


def every_arch(lab: Lab) -> dict[str, Any]:
    """The block in f16 for each GPU; nothing is run."""
    from backends.tvm.cuda.archs import ARCHS

    graph = graph_of(block("f16"))
    return {arch.name: lab.build(graph, arch.capability)[2]["facts"] for arch in ARCHS}


CASES: Mapping[str, Callable[[Lab], dict[str, Any]]] = {
    "branches": branches,
    "transformer": transformer,
    "integers": integers,
    "every_arch": every_arch,
}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        answer = CASES[sys.argv[1]](Lab(Path(scratch)))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        os._exit(0)  # no destructors on an emulated device
