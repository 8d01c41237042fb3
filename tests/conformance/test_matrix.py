"""The committed matrix is whole, holds no wrong cell, and is what the engines of this machine say.

CI makes a part of it again: a quarter of the operator groups, a third of the rest; ``-m slow`` another half. Verdicts
are compared by kind: last bits, and which deviation shows, depend on the processor.
"""

from __future__ import annotations

import zlib

import pytest
import torch

from backends import BACKENDS, backend
from backends.onnx_emit.table import EMITTERS
from tests.backends.operators import FAMILIES
from tests.conformance import matrix, run
from tests.conformance.judge import EXACT, compare
from tests.conformance.operators import COLUMNS, cells, listed

UPDATE = "run `python -m tests.conformance --write` and read what changed"
RIGHT = ("exact", "close")
REFUSING = frozenset({"aten._grouped_mm.default", "transformers.grouped_mm_fallback.default"})
"""Known only to be refused with a better reason."""
QUICK_ENGINES = tuple(b.name for b in BACKENDS if not b.patient)
PARTS = [(part, name) for part in (*FAMILIES, "regions", "models") for name in run.names(part)]


def _share(part: str, name: str) -> int:
    """0 .. 7, the same in every run."""
    return zlib.crc32(f"{part} {name}".encode()) % 8


@pytest.fixture(scope="module")
def committed() -> matrix.Matrix:
    return matrix.read()


def test_no_cell_is_wrong(committed: matrix.Matrix) -> None:
    wrong = [v for engine in matrix.ENGINES for v in matrix.verdicts(committed, engine)]
    assert not [v for v in wrong if matrix.kind(v) in ("mismatch", "crash")]


def test_page_is_what_the_matrix_says(committed: matrix.Matrix) -> None:
    assert matrix.PAGE.read_text() == matrix.page(committed), UPDATE


def test_every_call_has_a_row(committed: matrix.Matrix) -> None:
    for family, calls in FAMILIES.items():
        assert set(committed[family]) == {c.form for c in calls}, UPDATE
    for engine in QUICK_ENGINES:
        for part in ("regions", "models"):
            rows = {name.partition(" ")[0] if part == "models" else name for name in run.names(part)}
            assert {row for row, engines in committed[part].items() if engine in engines} == rows, UPDATE


def test_every_operator_of_a_table_has_a_case() -> None:
    tried = {c.name for calls in FAMILIES.values() for c in calls}
    assert set(EMITTERS) - REFUSING <= tried


@pytest.mark.parametrize(
    ("part", "name"),
    [pytest.param(*p, marks=() if _share(*p) < 2 else pytest.mark.slow) for p in PARTS if _share(*p) < 5],
)
def test_engines_do_as_the_matrix_says(part: str, name: str, committed: matrix.Matrix) -> None:
    rows = committed[part]
    wrong = []
    for section, row, engine, column, verdict in run.judge((QUICK_ENGINES, part, name), listed(rows, part, name)):
        assert section == part
        told = rows[row][engine][column]
        if not _agree(matrix.kind(told), matrix.kind(verdict)):
            wrong.append(f"{engine} {column} {row}: {verdict}; the matrix says {told}")
    assert not wrong, "\n".join([UPDATE, *wrong])


def _agree(told: str, found: str) -> bool:
    return told == found or (found in RIGHT and told in (*RIGHT, "differs"))


def test_a_wrong_number_is_a_mismatch() -> None:
    want = torch.tensor([1.0, float("nan"), 1e-40, -0.0])
    assert compare(want, want.clone()) == EXACT
    assert compare(want, want + 1e-6).kind == "close"
    assert compare(want, want * torch.tensor([1.001, 1, 1, 1])).kind == "mismatch"
    lost = torch.tensor([1.0, 0.0, 1e-40, -0.0])
    assert compare(want, lost).kind == "mismatch"
    assert compare(want, lost, {"nan": ""}).detail == "nan"
    assert compare(lost, want, {"nan": ""}).kind == "mismatch"  # a NaN from nowhere
    whole = torch.tensor([2**40, 3])
    assert compare(whole, torch.tensor([2**31 - 1, 3]), {"int64": ""}).detail == "int64"
    assert compare(whole, torch.tensor([2**40, 4]), {"int64": ""}).kind == "mismatch"


def test_deviations_are_those_that_the_suite_knows() -> None:
    assert {name for b in BACKENDS for name in b.deviations} <= {"nan", "int64", "denormal"}
    assert backend("reference").deviations == {}
    assert set(COLUMNS) >= {"f32", "f32!", "f32?", "i64!"}
    assert cells("decomposed", "f32")
