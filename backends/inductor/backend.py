"""AOTInductor behind the contract of backends: built in a child process, loaded from ``STEM.pt2``.

A package is native code: loading it runs it. ``load`` belongs on the payload of a sealed artifact, whose every byte
was checked, and on nothing else. Nothing in it is unpickled.

Weights stay in ``weights.safetensors`` and are mapped, not copied: the library reads them where they lie, and a
package takes two megabytes instead of the size of the model. Tensors of at most eight elements are literals of the
C++, so a threshold that is to be changed later must be an input of the model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
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
from backends.inductor import toolchain, wrapper
from backends.inductor.forms import row_sums
from backends.inductor.package import described
from backends.inductor.prepare import SUMS, refused
from backends.widen import is_narrow
from ir import Graph, show
from ir.errors import MissingError, PenstockError, ResourceError, UnsupportedError, UntrustedError
from ir.weights import load as load_weights


class Inductor(Backend):
    """Compiles with torch's own compiler; needs a C++ compiler to build, none to load."""

    name = "inductor"
    install = 'pip install "torch>=2.13,<2.14" and apt install g++'
    patient = True

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

    def load(self, folder: Path, threads: int | None = None, stem: str = "engine") -> Engine:
        """Load the library, which is native code: only from an artifact whose bytes were checked.

        ``threads`` are torch's, which belong to the process: they are set for each call and set back after it.
        """
        return _Library(_package(folder, stem), folder / WEIGHTS_FILE, threads)


class _Library(Engine):
    def __init__(self, path: Path, weights: Path, threads: int | None) -> None:
        if not path.is_file() or not weights.is_file():
            raise UntrustedError(f"{path.parent} holds no engine of AOTInductor")
        runner = torch._C._aoti.AOTIModelPackageLoader
        try:
            self._said = described(runner.load_metadata_from_package(str(path), "model"), path)
        except RuntimeError as error:
            raise UntrustedError(f"{path} is no package of AOTInductor") from error
        if lacks := toolchain.missing(self._said.flags):
            raise MissingError(
                f"{path.name} needs a processor with {', '.join(lacks)}, which this one lacks",
                hint="compile the model on this machine",
            )
        built, here = (version.partition("+")[0] for version in (self._said.torch, str(torch.__version__)))
        if built != here:  # the library calls into torch, whose insides change from version to version
            raise MissingError(f"{path.name} was built with torch {built}, here is {here}", hint="compile it again")
        self._device = torch.device(self._said.kind)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise MissingError(f"{path.name} was built for CUDA, and torch finds no GPU here")
        self._path, self._threads = path, threads
        try:
            # not torch._inductor.aoti_load_package: that also reads what else a package may hold, with pickle
            self._runner = runner(str(path), "model", False, 1, -1)
            self._weights = self._constants(weights)
            if self._weights:  # a library without its weights would read from nowhere
                self._runner.load_constants(self._weights, False, True, True, False)
        except RuntimeError as error:
            raise PenstockError(f"AOTInductor does not load {path.name}: {_sentence(error)}") from None
        self._held = {t.untyped_storage().data_ptr() for t in self._weights.values()}

    def _constants(self, weights: Path) -> dict[str, torch.Tensor]:
        """Those weights that the library still wants; small ones are part of its code."""
        wanted = set(self._runner.get_constant_fqns())
        names = {constant: name for constant, name in self._said.weights.items() if constant in wanted}
        if not names:
            return {}
        mapped = load_weights(weights)

        def tensor(name: str) -> torch.Tensor:
            return row_sums(mapped[name.removeprefix(SUMS)]) if name.startswith(SUMS) else mapped[name]

        return {constant: tensor(name).to(self._device) for constant, name in names.items()}

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        given = [inputs[name].detach().to(self._device).contiguous() for name in self._said.inputs]
        taken = self._held | {t.untyped_storage().data_ptr() for t in given}
        with _threads(self._threads):
            try:
                results = self._runner.run(given)
            except RuntimeError as error:
                raise PenstockError(f"AOTInductor failed: {_sentence(error)}") from None
        made: dict[str, torch.Tensor] = {}
        for name, tensor in zip(self._said.outputs, results, strict=True):
            place = tensor.untyped_storage().data_ptr()
            made[name] = (tensor.clone() if place in taken else tensor).cpu()  # no output shares memory
            taken.add(place)
        return made

    def facts(self) -> Mapping[str, int | str]:
        """Read from the C++ that lies in the package."""
        return wrapper.facts(wrapper.read(wrapper.source(self._path)))


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


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
