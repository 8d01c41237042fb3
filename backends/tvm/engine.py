"""A library of ours, loaded: torch tensors in and out without a copy, weights bound once."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from backends.base import WEIGHTS_FILE, Engine
from backends.tvm.cpu.target import flags_here
from backends.tvm.payload import Payload, read
from ir.errors import MissingError, PenstockError, UntrustedError
from ir.weights import load


class TvmEngine(Engine):
    """One virtual machine. It is not safe to call from two threads at once; ``LoadedModel`` holds a lock."""

    def __init__(self, folder: Path, stem: str, threads: int | None) -> None:
        library = folder / f"{stem}.so"
        self._payload = read(folder / f"{stem}.tvm.json")
        if not library.is_file() or not (folder / WEIGHTS_FILE).is_file():
            raise UntrustedError(f"{folder} holds no TVM engine")
        lacking = sorted(set(self._payload.flags) - flags_here())
        if lacking:
            raise MissingError(
                f"the library was compiled for a processor with {', '.join(lacking)}, which this one lacks",
                hint="compile it on this machine",
            )
        # by itself TVM takes half of the processors, thinking the others to be their second threads; read once
        os.environ.setdefault("TVM_NUM_THREADS", str(len(os.sched_getaffinity(0))))
        import tvm
        import tvm.runtime.vm  # nothing else imports it where TVM has no compiler

        self._threads = threads
        self._machine = tvm.runtime.vm.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
        self._run = self._machine["main"]
        self._configure = tvm.get_global_func("runtime.config_threadpool")
        self._kinds = self._payload.arguments
        self._bound = _weights(folder, stem, self._payload)

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run once."""
        args = [
            self._bound[kind, name] if (kind, name) in self._bound else compact(inputs[name].detach())
            for kind, name in self._kinds
        ]
        self._configure(1, self._threads or 0)
        try:
            results = self._run(*args)
        except (RuntimeError, ValueError, TypeError) as error:
            raise PenstockError(f"TVM failed: {' '.join(str(error).split())[-300:]}") from None
        return dict(zip(self._payload.outputs, map(_torch, results), strict=True))

    def facts(self) -> Mapping[str, int | str]:
        """Kernels by kind, counted in the executable when it was built."""
        return dict(self._payload.facts)


def compact(tensor: torch.Tensor) -> torch.Tensor:
    """Row after row, as TVM counts strides: where torch takes an empty axis for one of length 1, it multiplies by 0."""
    if tensor.numel():
        return tensor.contiguous()
    sizes = list(tensor.shape)
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    return torch.empty_strided(sizes, strides, dtype=tensor.dtype, device=tensor.device)


def _torch(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else torch.from_dlpack(result)


def _weights(folder: Path, stem: str, payload: Payload) -> dict[tuple[str, str], torch.Tensor]:
    packed = folder / f"{stem}.packed.safetensors"
    files = {"param": load(folder / WEIGHTS_FILE), "packed": load(packed) if packed.is_file() else {}}
    found = {}
    for kind, name in payload.arguments:
        if kind in files:
            if name not in files[kind]:
                raise UntrustedError(f"{folder} lacks the weight {name!r}")
            found[kind, name] = _aligned(files[kind][name])
    return found


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Kernels read whole vectors: memory that does not begin on one is copied."""
    made = tensor.contiguous()
    return made if made.data_ptr() % 64 == 0 else made.clone()
