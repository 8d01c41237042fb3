"""The C++ compiler that a build needs, and the processor that its library will need."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

_COMPILERS = ("g++", "clang++", "c++")
_CPUINFO = Path("/proc/cpuinfo")
_FLAGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("avx2", ("avx2", "fma", "f16c")),
    ("avx512", ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")),
    ("avx512_vnni", ("avx512_vnni",)),
    ("amx_tile", ("amx_tile", "amx_int8", "amx_bf16")),
)
"""Word of inductor's instruction set to the features of the processor that code for it may use."""
_BF16 = ("avx512_bf16", "amx_bf16")


def compiler() -> str | None:
    """Path of a C++ compiler: ``$CXX`` if it is one, else the first that is on PATH."""
    named = os.environ.get("CXX", "")
    return next((found for found in map(shutil.which, (named, *_COMPILERS)) if found), None)


def multiplies_bf16() -> bool:
    """Whether this processor has instructions for products in bf16; without them oneDNN emulates, slowly."""
    return bool(processor_flags() & set(_BF16))


def architecture(isa: str) -> str | None:
    """The architecture to compile for: not this very machine, which could use more than ``required`` tells.

    Args:
        isa: words of inductor's instruction set, such as ``avx512 avx512_vnni``.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    words = isa.split()
    return "x86-64-v4" if "avx512" in words else "x86-64-v3" if "avx2" in words else "x86-64"


def required(isa: str, compiled: str) -> tuple[str, ...]:
    """Features of a processor that a library needs.

    Args:
        isa: words of inductor's instruction set.
        compiled: text of the flags it was compiled with.
    """
    words = isa.split()
    if not any(word.startswith(("avx", "amx")) for word in words):
        return ()
    found = [*_FLAGS[0][1]]  # each of them includes AVX2
    for word, flags in _FLAGS[1:]:
        found += flags if word in words else ()
    found += ["avx512_bf16"] if "avx512bf16" in compiled else []
    return tuple(sorted(set(found)))


def missing(flags: Sequence[str]) -> list[str]:
    """Those features that this processor lacks; none where that cannot be known."""
    here = processor_flags()
    return [flag for flag in flags if flag not in here] if here else []


def processor_flags() -> frozenset[str]:
    """Features of this processor as Linux names them; empty elsewhere."""
    try:
        lines = _CPUINFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    named = (line.partition(":") for line in lines)
    return next(
        (frozenset(value.split()) for key, _, value in named if key.strip() in ("flags", "Features")), frozenset()
    )
