"""A library with cubins, loaded on a machine with the GPU: weights on the device once, results where inputs lay."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from backends.base import WEIGHTS_FILE, Engine
from backends.tvm.cuda.archs import Arch, arch_of
from backends.tvm.cuda.toolchain import load_runtime, wheels_root
from backends.tvm.engine import compact
from backends.tvm.payload import Payload, read
from ir.errors import MissingError, PenstockError, UntrustedError
from ir.weights import load


def cuda_arch(payload: Payload) -> Arch | None:
    """The GPU that a payload is for, ``None`` for a processor."""
    names = [flag for flag in payload.flags if flag.startswith("sm_")]
    return arch_of(int(names[0].removeprefix("sm_"))) if names and names[0][3:].isdigit() else None


class TvmCudaEngine(Engine):
    """One virtual machine on the first GPU. Not safe to call from two threads at once."""

    def __init__(self, folder: Path, stem: str) -> None:
        library = folder / f"{stem}.so"
        self._payload = read(folder / f"{stem}.tvm.json")
        self._arch = cuda_arch(self._payload)
        if self._arch is None or not library.is_file() or not (folder / WEIGHTS_FILE).is_file():
            raise UntrustedError(f"{folder} holds no TVM engine for a GPU")
        load_runtime(wheels_root())
        import tvm
        import tvm.runtime.vm  # nothing else imports it where TVM has no compiler

        self._device = _device(tvm, self._arch)
        self._host = tvm.cpu()
        self._view = tvm.runtime.from_dlpack
        try:
            module = tvm.runtime.load_module(str(library))
        except (OSError, RuntimeError) as error:
            raise MissingError(f"{library.name} does not load here: {' '.join(str(error).split())[-200:]}") from error
        self._machine = tvm.runtime.vm.VirtualMachine(module, self._device)
        self._run = self._machine["main"]
        files = {"param": load(folder / WEIGHTS_FILE), "packed": load(folder / f"{stem}.packed.safetensors")}
        self._bound: dict[tuple[str, str], Any] = {}
        for kind, name in self._payload.arguments:
            if kind in files:
                if name not in files[kind]:
                    raise UntrustedError(f"{folder} lacks the weight {name!r}")
                self._bound[kind, name] = self._there(files[kind][name])

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run once, on the GPU; results lie where the inputs lay."""
        args = [
            self._bound[kind, name] if (kind, name) in self._bound else self._there(inputs[name].detach())
            for kind, name in self._payload.arguments
        ]
        stays = any(tensor.is_cuda for tensor in inputs.values())
        try:
            results = [self._back(result, stays) for result in self._run(*args)]
        except (RuntimeError, ValueError, TypeError) as error:
            raise PenstockError(f"TVM failed: {' '.join(str(error).split())[-300:]}") from None
        return dict(zip(self._payload.outputs, results, strict=True))

    def facts(self) -> Mapping[str, int | str]:
        """What the library holds, read from it when it was built."""
        assert self._arch is not None
        return {"cubin": self._arch.name, **self._payload.facts}

    def _there(self, tensor: torch.Tensor) -> Any:
        if tensor.is_cuda:
            return compact(tensor)
        return self._view(compact(tensor)).copyto(self._device)

    def _back(self, result: Any, stays: bool) -> torch.Tensor:
        if isinstance(result, torch.Tensor):
            return result if stays else result.cpu()
        return torch.from_dlpack(result if stays else result.copyto(self._host))


def _device(tvm: Any, arch: Arch) -> Any:
    """The first GPU, when it runs code for an architecture: the same major version, no older minor."""
    runtime = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"
    try:
        ctypes.CDLL(str(runtime))  # TVM itself tried too, maybe before libcudart was there
    except OSError as error:
        raise MissingError("no NVIDIA driver: TVM's CUDA runtime does not load", hint=str(error)) from None
    device = tvm.cuda(0)
    if not device.exist:
        raise MissingError(f"no NVIDIA GPU was found; the library is for {arch.name} ({arch.gpus})")
    major, minor = (int(part) for part in str(device.compute_version).split("."))
    if major != arch.capability // 10 or minor < arch.capability % 10:
        raise MissingError(
            f"the library was built for {arch.name} ({arch.gpus}), this GPU is sm_{major}{minor}",
            hint="compile it for this GPU",
        )
    return device
