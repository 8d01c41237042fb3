"""Real sentences without a download: docstrings of the running Python's standard library.

Each sentence is the first paragraph of a docstring; its label is the top-level module that it
comes from. Sources are parsed, never imported. The same Python gives the same split every time.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

MODULES = (
    "_pydecimal",
    "asyncio",
    "email",
    "http",
    "importlib",
    "inspect",
    "logging",
    "mailbox",
    "multiprocessing",
    "pydoc",
    "tarfile",
    "unittest",
    "urllib",
    "xml",
)
"""The labels: the richest in docstrings among modules that 3.11 and later ship without extras."""

CALIBRATION, TRAIN, HELD_OUT = 4, 40, 20
"""Sentences of each module in each part of the split."""

SHORTEST, LONGEST = 5, 80
"""Words in a sentence: shorter ones say nothing, longer ones are tables and syntax."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A first paragraph on one line, and the module that it comes from."""

    text: str
    module: str

    @property
    def label(self) -> int:
        """The class of a linear probe: a position in `MODULES`."""
        return MODULES.index(self.module)


@dataclass(frozen=True, slots=True)
class Split:
    """Three parts without a common sentence, each with equally many sentences of every module.

    Modules take turns within a part, so that every prefix of it is mixed as well.
    """

    calibration: tuple[Sentence, ...]
    train: tuple[Sentence, ...]
    held_out: tuple[Sentence, ...]


def split() -> Split:
    """Read the standard library and give the fixed split of its sentences.

    Raises:
        ValueError: a module has too few docstrings, as in a Python installed without sources.
    """
    seen: set[str] = set()
    rows = [_choose(module, seen) for module in MODULES]
    mixed = [sentence for column in zip(*rows, strict=True) for sentence in column]
    first, second = CALIBRATION * len(MODULES), (CALIBRATION + TRAIN) * len(MODULES)
    return Split(tuple(mixed[:first]), tuple(mixed[first:second]), tuple(mixed[second:]))


def _choose(module: str, seen: set[str]) -> list[Sentence]:
    """The first sentences of a module that are not in `seen`, shuffled by their hash.

    Adds them to `seen`, so that no text has two labels. Stops reading files at the last one
    needed, since parsing is what takes the time.
    """
    need = CALIBRATION + TRAIN + HELD_OUT
    found: list[str] = []
    for text in _paragraphs(module):
        if len(found) == need:
            break
        if text not in seen:
            seen.add(text)
            found.append(text)
    if len(found) < need:
        raise ValueError(
            f"the standard library of this Python documents {len(found)} things in {module!r}, "
            f"the split needs {need}; use a Python installed with its sources"
        )
    found.sort(key=lambda text: sha256(text.encode()).digest())
    return [Sentence(text, module) for text in found]


def _paragraphs(module: str) -> Iterator[str]:
    """First paragraphs of the docstrings in a module or package, file by file."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in [root / f"{module}.py", *sorted((root / module).rglob("*.py"))]:
        if not path.exists():
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            words = (ast.get_docstring(node) or "").split("\n\n")[0].split()
            if SHORTEST <= len(words) <= LONGEST:
                yield " ".join(words)
