"""A shared library from object code: a bare linker is enough."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ir.errors import BuildError, MissingError, ResourceError

_HERE = ("ld", "ld.lld", "cc", "gcc", "clang", "g++")
_SHARED = ("-shared", "-o")


def link(executable: Any, path: Path, machine: str = "") -> None:
    """Write an executable of the virtual machine as a library.

    Args:
        executable: compiled for ``machine``.
        path: of the library.
        machine: ``x86_64``, ``aarch64``; this one's when empty.

    Raises:
        MissingError: there is no linker for it.
        ResourceError: no space, no permission.
        BuildError: the linker failed.
    """
    command = linker_for(machine or platform.machine())

    def run(output: str, objects: Sequence[str], options: Any = None, **_: Any) -> None:
        done = subprocess.run([*command, output, *objects], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{command[0]} could not link the library: {done.stderr.strip()[-300:]}")

    try:
        executable.export_library(str(path), fcompile=run)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error


def linker_for(machine: str) -> list[str]:
    """A command that links a shared library for a machine; its name and the objects follow.

    Raises:
        MissingError: there is none here.
    """
    here = machine == platform.machine()
    for name in _HERE if here else (f"{machine}-linux-gnu-ld", "ld.lld"):
        if shutil.which(name):
            return [name, *_SHARED]
    if find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu", "-nostdlib", *_SHARED]
    package = "binutils" if here else f"binutils-{machine}-linux-gnu"
    raise MissingError(
        f"no linker for {machine}, which TVM's object code needs",
        hint=f"pip install ziglang (or apt install {package})",
    )
