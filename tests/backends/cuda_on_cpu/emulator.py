"""Run a CUDA library of TVM on the CPU: its kernels, from the very source that became the cubin, on an emulated GPU.

Host code, virtual machine, launches, shared memory, barriers and fragments are as on a device; instructions are not.
Needs g++. For a process of its own: the emulated driver takes the place of the real one.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(([^)]*)\);')
_PREAMBLE = re.compile(r"^#if !defined\(__CUDA_ARCH__\).*?^#endif // __CUDA_ARCH__ >= 530$", re.M | re.S)


class Emulator:
    """The two libraries of an emulated GPU, loaded into this process before TVM is imported."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._used = folder, 0
        (folder / "versions").write_text("libcudart.so.13 { global: *; };")
        script = f"-Wl,--version-script={folder / 'versions'}"
        self._made("libcudart.so.13", HERE / "runtime.cpp", script)
        self._driver = self._made("libcuda.so.1", HERE / "driver.cpp")

    def _made(self, name: str, source: Path, *options: str) -> ctypes.CDLL:
        self._compile(self._folder / name, source, f"-Wl,-soname,{name}", *options)
        return ctypes.CDLL(str(self._folder / name), ctypes.RTLD_GLOBAL)

    def _compile(self, out: Path, source: Path, *options: str) -> None:
        command = ["g++", "-std=c++20", "-O1", "-w", "-fPIC", "-shared", *options, "-o", str(out), str(source)]
        subprocess.run(command, check=True)

    def use(self, source: str) -> None:
        """Take these kernels for what any module that is loaded holds."""
        self._used += 1  # a path that was opened once stays what it was
        path = self._folder / f"kernels{self._used}.cpp"
        path.write_text(for_cpu(source))
        self._compile(path.with_suffix(".so"), path, "-fsanitize=alignment", "-fsanitize-undefined-trap-on-error")
        self._driver.emulate(str(path.with_suffix(".so")).encode())

    @property
    def launches(self) -> int:
        """Kernels launched so far."""
        return self._driver.emulated_launches()

    @property
    def shared(self) -> int:
        """The most dynamic shared memory that a launch asked for, in bytes."""
        return self._driver.emulated_shared()


def for_cpu(source: str) -> str:
    """CUDA source as C++, with a launcher for each kernel."""
    launchers = []
    for name, parameters in _KERNEL.findall(source):
        types = [p.strip().rsplit(" ", 1)[0].replace("__restrict__", "").strip() for p in parameters.split(",")]
        values = ", ".join(f"*({t}*)p[{i}]" for i, t in enumerate(types) if t)
        launchers.append(
            f'extern "C" void launch_{name}(const unsigned* g, const unsigned* t, unsigned s, void** p)'
            f" {{ device::launch(g, t, s, [=] {{ {name}({values}); }}); }}"
        )
    plain = _PREAMBLE.sub("", source)
    plain = "\n".join(line for line in plain.splitlines() if not line.lstrip().startswith("#include"))
    plain = re.sub(
        r"extern __shared__ (?:__align__\(\d+\) )?(\w+) (\w+)\[\];", r"\1* \2 = (\1*)device::dynamic;", plain
    )
    plain = re.sub(r"__shared__ (alignas\(\d+\)) ", r"\1 static ", plain)
    return f'#include "{HERE / "device.h"}"\n{plain}\n' + "\n".join(launchers) + "\n"
