"""A package that was loaded. Loading one runs native code: see ``backend``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from backends.base import Engine
from backends.inductor import toolchain, wrapper
from backends.inductor.forms import row_sums
from backends.inductor.package import described
from backends.inductor.prepare import SUMS
from ir.errors import MissingError, PenstockError, UntrustedError
from ir.weights import load as load_weights


class Library(Engine):
    """Calls into the library; its weights are the mapped ones of the artifact, or lie in the package."""

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
                self._runner.load_constants(self._weights, False, True, True)
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
        """Run once; no output shares memory with an input, a weight or another output. Results lie where inputs lay."""
        stays = any(tensor.is_cuda for tensor in inputs.values())
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
            own = tensor.clone() if place in taken else tensor
            made[name] = own if stays else own.cpu()
            taken.add(place)
        return made

    def facts(self) -> Mapping[str, int | str]:
        """Read from the C++ that lies in the package."""
        return wrapper.facts(wrapper.read(wrapper.source(self._path)))


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
