"""AOTInductor behind the contract of backends: built in a child process, loaded from ``STEM.pt2``.

A package is native code: loading it runs it. ``load`` belongs on the payload of a sealed artifact, whose every byte
was checked, and on nothing else. Nothing in it is unpickled.

Weights stay in ``weights.safetensors`` and are mapped, not copied: the library reads them where they lie, and a
package takes half a megabyte instead of the size of the model. Tensors of at most eight elements are literals of the
C++, so a threshold that is to be changed later must be an input of the model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch

from backends.base import (
    CPU,
    DEFAULT,
    WEIGHTS_FILE,
    Backend,
    BuildOptions,
    Built,
    Device,
    Engine,
    FlowProof,
    Unsupported,
)  # fmt: skip
from backends.child import run_child
from backends.inductor import toolchain
from backends.inductor.library import Library
from backends.inductor.prepare import refused
from backends.widen import is_narrow
from ir import Graph, parse, show
from ir.errors import MissingError, ResourceError, UnsupportedError, UntrustedError
from ir.weights import load


class Inductor(Backend):
    """Compiles with torch's own compiler; needs a C++ compiler to build, none to load."""

    name = "inductor"
    install = 'pip install "torch>=2.13,<2.14" and apt install g++'
    patient = True
    rows = "compacted"

    def version(self) -> str | None:
        """Version of torch: its compiler is part of it."""
        try:
            return metadata.version("torch")
        except metadata.PackageNotFoundError:
            return None

    def why_not(self, device: Device) -> str:
        """A CUDA library is made of kernels that are compiled, and tuned, on the GPU itself."""
        if device.kind == "cpu":
            return ""
        if not torch.cuda.is_available():
            return "AOTInductor for CUDA is built on the CUDA machine itself"
        major, minor = torch.cuda.get_device_capability()
        if device.capability not in (0, 10 * major + minor):
            return f"AOTInductor builds for the GPU that is here, compute capability {major}.{minor}"
        return ""

    def unsupported(self, graph: Graph, device: Device = CPU) -> list[Unsupported]:
        """What the generated library could not compute as torch does."""
        return list(refused(graph))

    def build(self, graph: Graph, folder: Path, options: BuildOptions = DEFAULT) -> Built:
        """Write ``STEM.pt2``.

        Raises:
            MissingError: there is no C++ compiler, or no such device.
        """
        if faults := self.unsupported(graph, options.device):
            raise UnsupportedError("\n".join(map(str, faults)))
        if why := self.why_not(options.device):
            raise MissingError(why)
        compiler = toolchain.compiler()
        if compiler is None:
            raise MissingError("AOTInductor needs a C++ compiler to build, and none is here", hint="apt install g++")
        kind = options.device.kind
        narrow = any(map(is_narrow, graph.walk()))
        freeze = kind == "cpu" and narrow and toolchain.multiplies_bf16()
        with _workplace() as place:
            try:
                (place / "graph.ir").write_text(show(graph), encoding="utf-8")
            except OSError as error:
                raise ResourceError(f"cannot write {place}: {error.strerror}") from error
            request = {
                "ir": str(place / "graph.ir"),
                "folder": str(folder.resolve()),
                "package": str(_package(folder.resolve(), options.stem)),
                "kind": kind,
                "freeze": freeze,
            }
            answer = run_child(
                "backends.inductor.child", request, timeout=options.timeout, memory=options.memory,
                progress=options.progress, environment=_environment(place, compiler),
            )  # fmt: skip
        requires = {"torch": self.version() or ""}
        if answer["flags"]:
            requires["cpu"] = " ".join(answer["flags"])
        flow = tuple(
            FlowProof(node, how, evidence, detail, lazy=lazy) for node, how, evidence, detail, lazy in answer["flow"]
        )
        return Built(_remarks(graph, kind, narrow, freeze), answer["facts"], flow, requires)

    def kit(self, graph: Graph, folder: Path, options: BuildOptions = DEFAULT) -> Built | None:
        """The graph itself: a CUDA machine compiles it."""
        if options.device.kind != "cuda":
            return None
        if faults := self.unsupported(graph, options.device):
            raise UnsupportedError("\n".join(map(str, faults)))
        try:
            _kit(folder, options.stem).write_text(show(graph), encoding="utf-8")
        except OSError as error:
            raise ResourceError(f"cannot write {folder}: {error.strerror}") from error
        told = "a kit: torch's compiler builds it on the machine that has the GPU (penstock build-on-target)"
        return Built((told,), requires={"torch": self.version() or ""})

    def finish(self, folder: Path, options: BuildOptions = DEFAULT) -> Built:
        """Compile the graph of a kit on this machine."""
        try:
            text = _kit(folder, options.stem).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UntrustedError(f"{folder} holds no kit for torch's compiler") from error
        return self.build(parse(text, load(folder / WEIGHTS_FILE)), folder, options)

    def load(self, folder: Path, threads: int | None = None, stem: str = "engine") -> Engine:
        """Load the library, which is native code: only from an artifact whose bytes were checked.

        ``threads`` are torch's, which belong to the process: they are set for each call and set back after it.
        """
        return Library(_package(folder, stem), folder / WEIGHTS_FILE, threads)


def _kit(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.kit.ir"


def _package(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.pt2"


def _remarks(graph: Graph, kind: str, narrow: bool, frozen: bool) -> tuple[str, ...]:
    said = []
    if frozen:
        said.append("weights are packed for oneDNN, a copy of them lies in the package")
    elif narrow and kind == "cpu":
        said.append("this processor has no bf16 instructions: products run in float32")
    attentions = sum(node.op.name == "penstock.int8_attention.default" for node in graph.walk())
    if attentions:
        said.append(f"{attentions} int8 attention(s) run in float32 on rounded values: inductor has no integer form")
    return tuple(said)


@contextmanager
def _workplace() -> Iterator[Path]:
    """A folder of this build alone: sources, objects and inductor's cache; nothing of it is left."""
    try:
        place = tempfile.TemporaryDirectory(prefix="penstock-inductor-", ignore_cleanup_errors=True)
    except OSError as error:
        raise ResourceError(f"no temporary folder: {error.strerror}") from error
    with place as name:
        yield Path(name)


def _environment(place: Path, compiler: str) -> dict[str, str]:
    temporary = place / "tmp"
    temporary.mkdir()
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(place / "cache"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of workers that would outlive a kill
        "TMPDIR": str(temporary),
        "CXX": compiler,
        "PYTHONWARNINGS": "ignore",
    }
