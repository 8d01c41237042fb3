"""What tinylm learns and is judged by: the sources of Python's standard library, split by file.

A file's part depends on its path alone, so it is the same on every machine and in every version that has
the file. Sources are read as bytes, never imported.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

SPLIT = (
    "sha256 of a file's path below the standard library, in posix form, modulo 20: 0 held out, 1 validation, else fit; "
    "tests are always fit, since not every Python ships them"
)
FOREIGN = {"site-packages", "dist-packages"}
TESTS = {"test", "tests", "idle_test"}
START = 0
"""The byte that stands before every file."""


@dataclass(frozen=True)
class Corpus:
    """Three disjoint parts, uint8 [bytes] each: files in order of their path, `START` before each."""

    fit: Tensor
    validation: Tensor
    held_out: Tensor
    files: dict[str, tuple[str, ...]]
    """Part -> paths."""
    digest: str
    """Of all paths and contents."""


def part_of(path: str) -> str:
    """`fit`, `validation` or `held_out`, for a posix path below the standard library."""
    if TESTS & set(path.split("/")):
        return "fit"
    rest = int(sha256(path.encode()).hexdigest(), 16) % 20
    return {0: "held_out", 1: "validation"}.get(rest, "fit")


def read_corpus(root: Path | None = None) -> Corpus:
    """Read all sources below `root`, by default the standard library of the running Python.

    Raises:
        ValueError: a part has no file, as in a Python installed without sources.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    found = {path.relative_to(root).as_posix(): path for path in _sources(root)}
    texts = {"fit": bytearray(), "validation": bytearray(), "held_out": bytearray()}
    files: dict[str, list[str]] = {part: [] for part in texts}
    digest = sha256()
    for name in sorted(found):
        content = found[name].read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
        files[part_of(name)].append(name)
        texts[part_of(name)] += bytes([START]) + content
    if empty := [part for part, text in texts.items() if not text]:
        raise ValueError(f"{root} has no Python sources for {', '.join(empty)}; name a complete standard library")
    return Corpus(
        **{part: torch.frombuffer(text, dtype=torch.uint8) for part, text in texts.items()},
        files={part: tuple(names) for part, names in files.items()},
        digest=digest.hexdigest(),
    )


def _sources(root: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        below[:] = set(below) - FOREIGN
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def windows(text: Tensor, length: int, most: int) -> Tensor:
    """At most `most` windows without overlap, evenly over the text, int64 [windows, length + 1].

    The last byte of a window is only a target. A short text gives fewer.

    Raises:
        ValueError: the text is shorter than one window.
    """
    whole = text.numel() // (length + 1)
    if not whole:
        raise ValueError(f"{text.numel()} bytes are less than one window of {length + 1}")
    rows = text[: whole * (length + 1)].view(whole, length + 1)
    picked = torch.arange(min(most, whole)) * whole // min(most, whole)
    return rows[picked.to(rows.device)].long()
