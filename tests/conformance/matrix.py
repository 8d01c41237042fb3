"""The matrix on disk: ``matrix.json`` for tests, ``MATRIX.md`` for readers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from backends import BACKENDS
from tests.backends.operators import FAMILIES
from tests.conformance.judge import KINDS
from tests.conformance.operators import COLUMNS

PATH = Path(__file__).with_name("matrix.json")
PAGE = Path(__file__).with_name("MATRIX.md")
SECTIONS = ("operators", "regions", "models")
ENGINES = tuple(b.name for b in BACKENDS)
Matrix = dict[str, dict[str, dict[str, dict[str, str]]]]
"""Section (an operator family, ``regions``, ``models``) -> row -> engine -> column -> verdict."""


def read() -> Matrix:
    """The committed matrix."""
    packed = json.loads(PATH.read_text()) if PATH.exists() else {}
    return {
        section: {
            row: {
                engine: {column: verdict for verdict, columns in found.items() for column in columns.split()}
                for engine, found in engines.items()
            }
            for row, engines in rows.items()
        }
        for section, rows in packed.items()
    }


def write(matrix: Matrix) -> None:
    """Both files. Equal verdicts of one row and engine stand together."""
    packed: dict[str, Any] = {}
    for section in (*FAMILIES, "regions", "models"):
        rows = matrix.get(section, {})
        lines = {row: {e: _packed(rows[row][e]) for e in ENGINES if e in rows[row]} for row in rows}
        packed[section] = lines
    text = ",\n".join(
        f"{json.dumps(section)}: {{\n"
        + ",\n".join(f" {json.dumps(r)}: {json.dumps(e)}" for r, e in rows.items())
        + "\n}"
        for section, rows in packed.items()
    )
    PATH.write_text("{\n" + text + "\n}\n")
    PAGE.write_text(page(matrix))


def _packed(found: Mapping[str, str]) -> dict[str, str]:
    made: dict[str, str] = {}
    for column in sorted(found, key=_place):
        made[found[column]] = f"{made.get(found[column], '')} {column}".strip()
    return made


def _place(column: str) -> tuple[int, str]:
    return (COLUMNS.index(column) if column in COLUMNS else -1), column


def kind(verdict: str) -> str:
    """First word of a verdict."""
    return verdict.partition(":")[0]


def verdicts(matrix: Matrix, engine: str, *sections: str) -> Iterator[str]:
    """Every cell of an engine."""
    for section in sections or tuple(matrix):
        for engines in matrix.get(section, {}).values():
            yield from engines.get(engine, {}).values()


def page(matrix: Matrix) -> str:
    """The readable document."""
    lines = [
        "# What each engine supports",
        "",
        "Made by `python -m tests.conformance --write`; CI makes parts of it again and compares the kinds of verdicts.",
        "A cell is a call of an operator at one element type (or with extreme content: `!` infinities, negative zero,",
        "denormal numbers, or whole numbers beyond 32 bits; `?` NaN), a piece of control flow, or a model; it is",
        "compared with the reference meaning (torch) at several sizes of each dynamic dim. `matrix.json` holds all.",
        "",
        "- **exact**: bit for bit. **close**: within the tolerance of the type (float32 2e-5, float16 8e-3,",
        "  bfloat16 6e-2, float64 1e-10, relative above one; whole numbers are exact or wrong).",
        "- **refused**: the backend says before or at the call that it cannot, and why.",
        "- **differs**: a deviation that the backend declares, listed below. **mismatch**, **crash**: never.",
        "- **not run**: nothing is known.",
        "",
        "## Counts",
        "",
        "| engine | what | " + " | ".join((*KINDS, "not run")) + " |",
        "|---|---|" + "---:|" * (len(KINDS) + 1),
    ]
    for engine in ENGINES:
        for what, sections in (("operators", tuple(FAMILIES)), ("regions", ("regions",)), ("models", ("models",))):
            count = Counter(map(kind, verdicts(matrix, engine, *sections)))
            count["not run"] = sum(
                len(_columns(row) - set(row.get(engine, {}))) for s in sections for row in matrix.get(s, {}).values()
            )
            lines.append(f"| {engine} | {what} | " + " | ".join(str(count[k]) for k in (*KINDS, "not run")) + " |")
    lines += ["", "## Deviations", "", "| engine | name | what | cells |", "|---|---|---|---:|"]
    for backend in BACKENDS:
        for name, what in backend.deviations.items():
            cells = sum(kind(v) == "differs" and name in v for v in verdicts(matrix, backend.name))
            lines.append(f"| {backend.name} | {name} | {what} | {cells} |")
    lines += _reasons(matrix)
    for section in ("regions", "models", *FAMILIES):
        lines += _table(matrix, section)
    return "\n".join(lines) + "\n"


def _reasons(matrix: Matrix) -> list[str]:
    lines = ["", "## Refusals", "", "| engine | reason | cells |", "|---|---|---:|"]
    for engine in ENGINES:
        found = Counter(v.partition(": ")[2] for v in verdicts(matrix, engine) if kind(v) == "refused")
        ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
        lines += [f"| {engine} | {reason.replace('|', '/')} | {n} |" for reason, n in ordered]
    return lines


def _table(matrix: Matrix, section: str) -> list[str]:
    """A row per call; what all columns share is said once."""
    rows = matrix.get(section, {})
    lines = ["", f"## {section.capitalize()}", "", "| | " + " | ".join(ENGINES) + " |", "|---|" + "---|" * len(ENGINES)]
    for row, engines in rows.items():
        shown = [_cell(engines.get(e, {}), _columns(engines)) for e in ENGINES]
        lines.append(f"| `{row.replace('|', '/')}` | " + " | ".join(shown) + " |")
    return lines


def _columns(engines: Mapping[str, Mapping[str, str]]) -> set[str]:
    """Columns of a row: those that any engine was asked for."""
    return {column for found in engines.values() for column in found}


def _cell(found: Mapping[str, str], asked: Collection[str]) -> str:
    shown = {c: kind(found[c]) if c in found else "not run" for c in sorted(asked, key=_place)}
    parts = []
    for name in (*KINDS, "not run"):
        columns = [c for c, k in shown.items() if k == name]
        if columns:
            parts.append(name if len(columns) == len(shown) else f"{name} {' '.join(columns)}")
    return "; ".join(parts)
