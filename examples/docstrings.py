"""Labelled texts without a download: the docstrings of the standard library's classes and functions.

The label is the top-level module. Sources are parsed, never imported. A text's part depends on the text alone.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from examples.tinylm_data import FOREIGN, TESTS

SPLIT = (
    "sha256 of the text modulo 10: 0 and 1 held out, 2 validation, else fit; texts that two modules share are left out"
)
SHORTEST, LONGEST = 5, 80
"""Words of a text: shorter docstrings are left out, longer ones are cut."""
MOST = 300
"""Texts of one module, the first by their hash, so that a large module does not rule."""
RETIRED = frozenset(
    {"asynchat", "asyncore", "distutils", "idlelib", "imp", "lib2to3", "nntplib", "smtpd", "turtledemo"}
)
"""Not in every Python from 3.11 on, or packed apart by some systems."""


@dataclass(frozen=True, slots=True)
class Text:
    """One docstring on one line, and the module that it comes from."""

    text: str
    module: str

    @property
    def part(self) -> str:
        """`fit`, `validation` or `held_out`."""
        rest = int(_hash(self.text), 16) % 10
        return "held_out" if rest < 2 else "validation" if rest == 2 else "fit"


def read_texts(modules: Sequence[str] | None = None, root: Path | None = None) -> list[Text]:
    """Texts of these modules, or of all, in order of module and hash.

    Modules that this Python lacks have none. With fewer modules fewer texts are shared, so a text of `None` may
    be missing here and be there.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    if modules is None:
        tops = {path.stem for path in root.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
        modules = sorted(tops - RETIRED - FOREIGN - TESTS)
    own = {module: set(_docstrings(root, module)) for module in modules}
    owners = Counter(text for texts in own.values() for text in texts)
    return [
        Text(text, module)
        for module, texts in own.items()
        for text in sorted((text for text in texts if owners[text] == 1), key=_hash)[:MOST]
    ]


def richest(texts: Sequence[Text], count: int) -> tuple[str, ...]:
    """The modules with the most texts, in order of their name.

    Raises:
        ValueError: there are fewer modules.
    """
    found = Counter(text.module for text in texts)
    if len(found) < count:
        raise ValueError(f"{len(found)} modules have docstrings, not {count}; use a Python installed with its sources")
    return tuple(sorted(sorted(found, key=lambda module: (-found[module], module))[:count]))


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _docstrings(root: Path, module: str) -> Iterator[str]:
    for path in [root / f"{module}.py", *sorted((root / module).rglob("*.py"))]:
        if not path.is_file() or TESTS & set(path.relative_to(root).parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                words = (ast.get_docstring(node) or "").split()
                if len(words) >= SHORTEST:
                    yield " ".join(words[:LONGEST])
