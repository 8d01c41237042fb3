"""What a built library holds for the GPU, read from its bytes: cubins, their kernels, their tensor-core instructions.

A cubin is an ELF file of machine type 190 embedded in the library. ``e_flags`` names its architecture, each kernel is
a section ``.text.NAME`` of 16-byte instructions, and the low 12 bits of an instruction are its opcode. The opcodes
were compared with ``nvdisasm`` 13.5 for compute capability 7.5, 8.0, 9.0, 10.0 and 12.0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ir.errors import BuildError

_MAGIC, _CUDA = b"\x7fELF", 190
_INSTRUCTION, _OPCODE = 16, 0xFFF
_MATRIX = frozenset({0x23C, 0x237})  # HMMA, IMMA
_NEW_FLAGS = 8  # the ABI version since which the architecture stands in the second byte


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel: its name, and how many instructions of its code are for tensor cores."""

    name: str
    matrix_instructions: int


@dataclass(frozen=True, slots=True)
class Cubin:
    """Code for one architecture: its compute capability times ten, and its kernels."""

    capability: int
    kernels: tuple[Kernel, ...]


def cubins(library: bytes) -> tuple[Cubin, ...]:
    """Every cubin in a library, in order."""
    return tuple(_found(library))


def checked(library: bytes, capability: int) -> dict[str, int | str]:
    """Facts of a library that must hold code for one architecture and no other.

    Raises:
        BuildError: it holds none, or other code.
    """
    found = cubins(library)
    others = sorted({c.capability for c in found} - {capability})
    if not found or others:
        held = ", ".join(f"sm_{c}" for c in others) or "no GPU code"
        raise BuildError(f"TVM built a library with {held}, where sm_{capability} was asked for")
    kernels = [kernel for cubin in found for kernel in cubin.kernels]
    return {
        "cubin": f"sm_{capability}",
        "kernels": len(kernels),
        "tensor_core_kernels": sum(k.matrix_instructions > 0 for k in kernels),
    }


def _found(library: bytes) -> Iterator[Cubin]:
    at = library.find(_MAGIC)
    while at >= 0:
        if struct.unpack_from("<H", library, at + 18)[0] == _CUDA:
            yield _cubin(memoryview(library)[at:])
        at = library.find(_MAGIC, at + 4)


def _cubin(data: memoryview) -> Cubin:
    version = data[8]
    (flags,) = struct.unpack_from("<I", data, 48)
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    sections = [struct.unpack_from("<IIQQQQ", data, table + size * n) for n in range(count)]
    text = sections[names][4]
    kernels = []
    for name, _, _, _, start, length in sections:
        label = _text(data, text + name)
        if label.startswith(".text."):
            kernels.append(Kernel(label.removeprefix(".text."), _matrix(data[start : start + length])))
    return Cubin((flags >> 8 if version >= _NEW_FLAGS else flags) & 0xFF, tuple(kernels))


def _text(data: memoryview, at: int) -> str:
    return bytes(data[at : at + 4096]).split(b"\0", 1)[0].decode()


def _matrix(code: Sequence[int] | memoryview) -> int:
    whole = len(code) - len(code) % _INSTRUCTION
    return sum(word & _OPCODE in _MATRIX for word, _ in struct.iter_unpack("<QQ", bytes(code[:whole])))
