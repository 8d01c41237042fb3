"""A stand-in for the NVIDIA driver's library, for machines that compile for a GPU which they do not have.

TVM's CUDA runtime library is what turns CUDA source into a cubin, and it is linked against ``libcuda.so.1``, which
comes with a driver only. Nothing of the driver is called before a kernel runs, so a shared object that merely names
the symbols lets that library load. It is written here byte by byte (System V ABI, chapters 4 and 5): no compiler and
no linker is needed. A call through it would end the process, which is a child made for compiling.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ir.errors import MissingError

DRIVER = "libcuda.so.1"
SYMBOLS = (
    "cuDeviceGetName", "cuFuncSetAttribute", "cuGetErrorName", "cuGetErrorString", "cuLaunchKernelEx",
    "cuModuleGetFunction", "cuModuleLoadData", "cuModuleUnload", "cuTensorMapEncodeTiled",
)  # fmt: skip
"""What TVM 0.27 needs of the driver."""

_MACHINES = {"x86_64": 62, "aarch64": 183}
_HEADER, _PROGRAM, _SYMBOL, _PAGE = 64, 56, 24, 0x10000
_LOAD, _DYNAMIC, _STACK = 1, 2, 0x6474E551
_PROGRAMS, _TAGS = 3, 7
_READ_WRITE = 6
_HASH, _STRTAB, _SYMTAB, _STRSZ, _SYMENT, _SONAME = 4, 5, 6, 10, 11, 14
_GLOBAL_FUNCTION, _ABSOLUTE, _NOWHERE = 0x12, 0xFFF1, 1


def load_driver() -> bool:
    """Load the driver's library into this process, or a stand-in where there is none. Returns whether it is real."""
    try:
        ctypes.CDLL(DRIVER, ctypes.RTLD_GLOBAL)
    except OSError:
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / DRIVER
            path.write_bytes(shared_object(DRIVER, SYMBOLS, platform.machine()))
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        return False
    return True


def shared_object(name: str, symbols: Sequence[str], machine: str) -> bytes:
    """An ELF shared object of that name which defines those symbols, none of which may be called.

    Raises:
        MissingError: no such object is known for this kind of machine.
    """
    if machine not in _MACHINES:
        raise MissingError(f"CUDA kernels cannot be built on a {machine} machine without an NVIDIA driver")
    strings, places = b"\0", []
    for text in (*symbols, name):
        places.append(len(strings))
        strings += text.encode() + b"\0"
    table = bytes(_SYMBOL) + b"".join(
        struct.pack("<IBBHQQ", at, _GLOBAL_FUNCTION, 0, _ABSOLUTE, _NOWHERE, 0) for at in places[:-1]
    )
    count = len(symbols) + 1
    # one bucket: the chain runs through all symbols and ends at the null symbol
    chain = struct.pack(f"<{3 + count}I", 1, count, 1, 0, *range(2, count), 0)
    chain += bytes(-len(chain) % 8)
    at_hash = _HEADER + _PROGRAMS * _PROGRAM
    at_table = at_hash + len(chain)
    at_dynamic = at_table + len(table)
    at_strings = at_dynamic + 16 * _TAGS
    dynamic = struct.pack(
        f"<{2 * _TAGS}Q",
        _SONAME, places[-1], _HASH, at_hash, _STRTAB, at_strings, _SYMTAB, at_table, _STRSZ, len(strings),
        _SYMENT, _SYMBOL, 0, 0,
    )  # fmt: skip
    total = at_strings + len(strings)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack(
        "<HHIQQQIHHHHHH", 3, _MACHINES[machine], 1, 0, _HEADER, 0, 0, _HEADER, _PROGRAM, _PROGRAMS, 0, 0, 0
    )
    programs = b"".join(
        struct.pack("<IIQQQQQQ", kind, _READ_WRITE, start, start, start, size, size, alignment)
        for kind, start, size, alignment in (
            (_LOAD, 0, total, _PAGE),
            (_DYNAMIC, at_dynamic, len(dynamic), 8),
            (_STACK, 0, 0, 16),  # without it the loader asks for an executable stack, which may be refused
        )
    )
    return header + programs + chain + table + dynamic + strings
