"""The CUDA compiler and what it needs, found where they are: wheels from PyPI, or a toolkit with ``nvcc``."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ir.errors import MissingError

INSTALL = 'pip install "penstock[tvm-cuda]"'
_RUNTIME = "libcudart.so.13"
_WHEELS = (
    (f"lib/{_RUNTIME}", "nvidia-cuda-runtime"),
    ("lib/libnvrtc.so.13", "nvidia-cuda-nvrtc"),
    ("include/cuda_runtime.h", "nvidia-cuda-runtime"),
    ("include/crt/host_defines.h", "nvidia-cuda-crt"),
    ("include/cccl/cuda/std/cstdint", "nvidia-cuda-cccl"),
)


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A compiler for CUDA.

    Attributes:
        compiler: ``nvrtc`` or ``nvcc``.
        root: that holds ``include`` and ``lib`` (``lib64`` in a toolkit).
    """

    compiler: str
    root: Path

    def environment(self) -> Mapping[str, str]:
        """What TVM's callers of the compiler read."""
        return {
            "CUDA_PATH": str(self.root),
            "TVM_CUDA_NVRTC_EXTRA_OPTS": f"-I{self.root / 'include' / 'cccl'}",
            "TVM_CUDA_NVCC_NO_FAST_MATH": "1",
        }


def toolchain() -> Toolchain:
    """The compiler of this machine: NVRTC from PyPI, otherwise nvcc.

    Raises:
        MissingError: there is neither.
    """
    wheels = wheels_root()
    missing = [name for file, name in _WHEELS if wheels is None or not (wheels / file).is_file()]
    if wheels is not None and not missing and find_spec("cuda") and find_spec("cuda.bindings"):
        return Toolchain("nvrtc", wheels)
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        root = Path(os.path.realpath(nvcc)).parents[1]
        if (root / "lib64" / _RUNTIME).is_file():
            return Toolchain("nvcc", root)
    absent = ", ".join(dict.fromkeys(missing)) or "cuda-bindings"
    raise MissingError(f"no CUDA compiler: neither nvcc of CUDA 13 nor NVRTC from PyPI ({absent})", hint=INSTALL)


def wheels_root() -> Path | None:
    """Where NVIDIA's wheels for CUDA 13 unpack, ``None`` without any."""
    spec = find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / "cu13").is_dir():
            return Path(place) / "cu13"
    return None


def load_runtime(root: Path | None) -> None:
    """Load ``libcudart`` into this process, before TVM looks for it where the loader does not.

    Raises:
        MissingError: it is nowhere.
    """
    places = [root / folder / _RUNTIME for folder in ("lib", "lib64")] if root else []
    for name in [str(p) for p in places if p.is_file()] + [_RUNTIME]:
        try:
            ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return
    raise MissingError(f"{_RUNTIME} is not installed", hint="pip install nvidia-cuda-runtime")
