"""A shared library from object code: a bare linker is enough."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ir.errors import BuildError, MissingError, ResourceError

_LINKERS: tuple[tuple[str, ...], ...] = (("ld",), ("ld.lld",), ("cc",), ("gcc",), ("clang",), ("g++",))


def link(executable: Any, path: Path) -> None:
    """Write an executable of the virtual machine as a library.

    Raises:
        MissingError: there is no linker.
        ResourceError: no space, no permission.
        BuildError: the linker failed.
    """
    found = next((command for command in _LINKERS if shutil.which(command[0])), None)
    if found is None:
        raise MissingError("no linker was found, which TVM's object code needs", hint="apt install binutils")

    def run(output: str, objects: Sequence[str], options: Any = None, **_: Any) -> None:
        done = subprocess.run([*found, "-shared", "-o", output, *objects], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{found[0]} could not link the library: {done.stderr.strip()[-300:]}")

    try:
        executable.export_library(str(path), fcompile=run)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error
