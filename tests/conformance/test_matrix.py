"""The committed matrix is whole, holds no wrong cell, and is what the engines of this machine say.

CI makes a part of it again: an eighth of the operator groups, all control flow and two models, and a few graphs of the
engines that compile for long; with ``-m slow`` float32 of every group and the other models. ``-m long`` has an eighth
more of the groups, models after recipes, and more graphs of the engines that compile. Verdicts are compared by kind:
last bits, and which deviation shows, depend on the processor.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

import backends.onnx_emit.table as onnx_emit_table
import backends.tvm.table as tvm_table
from backends import BACKENDS, backend
from ir import PenstockError, op
from tests.backends.operators import FAMILIES
from tests.conformance import matrix, run
from tests.conformance.judge import EXACT, compare
from tests.conformance.operators import COLUMNS, cells, listed
from tests.conformance.regions import regions

UPDATE = "run `python -m tests.conformance --write` and read what changed"
RIGHT = ("exact", "close")
TABLES = {"onnx": onnx_emit_table.EMITTERS, "tvm": tvm_table.EMITTERS}
UNTRIED = {
    **dict.fromkeys(("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default"), "only to be refused"),
    **dict.fromkeys(
        ("aten.empty.memory_format", "aten.empty_like.default", "aten.new_empty.default"), "any content is right"
    ),
    **dict.fromkeys(("aten.size.int", "aten.numel.default", "aten.is_nonzero.default"), "never in a dynamic graph"),
    "aten._native_batch_norm_legit.default": "changes its operands, which capture takes apart",
}
ENGINES = tuple(b.name for b in BACKENDS if b.name not in run.COMPILED)
QUICK_MODELS = ("bert", "early_exit")
COMPILED = (("norms", "f32"), ("attention", "f32"), ("numbers", "f32"), ("regions", "while in a branch of cond"))
COMPILED_QUICK = (("tvm", "reductions", "i8"), ("tvm", "norms", "f16"), ("inductor", "decomposed", "f32"))


def _parts() -> Iterator[Any]:
    """Of each operator family a share of the columns, the same in every run."""
    for part, name in ((p, n) for p in (*FAMILIES, "regions", "models") for n in run.names(p)):
        share = zlib.crc32(f"{part} {name}".encode()) % 8
        quick = part == "regions" or name in QUICK_MODELS or (part in FAMILIES and share == 0)
        if quick or part == "models" or name == "f32" or share < 2:
            slow = pytest.mark.slow if name == "f32" or (part == "models" and " " not in name) else pytest.mark.long
            yield pytest.param(part, name, marks=() if quick else slow)


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
    for engine in ENGINES:
        for part in ("regions", "models"):
            rows = {name.partition(" ")[0] if part == "models" else name for name in run.names(part)}
            assert {row for row, engines in committed[part].items() if engine in engines} == rows, UPDATE


@pytest.mark.parametrize("table", TABLES)
def test_every_operator_of_a_table_has_a_case(table: str) -> None:
    tried = {c.name for calls in FAMILIES.values() for c in calls}
    tried |= {node.op.name for make in regions().values() for node in make().walk()}
    assert sorted(filter(_known, set(TABLES[table]) - tried - set(UNTRIED))) == []


def _known(name: str) -> bool:
    try:
        op(name)
    except PenstockError:
        return False
    return True


@pytest.mark.parametrize(("part", "name"), _parts())
def test_engines_do_as_the_matrix_says(part: str, name: str, committed: matrix.Matrix) -> None:
    _check(ENGINES, part, name, committed)


@pytest.mark.long
@pytest.mark.parametrize(("part", "name"), COMPILED)
@pytest.mark.parametrize("engine", run.COMPILED)
def test_compiled_engines_do_as_the_matrix_says(engine: str, part: str, name: str, committed: matrix.Matrix) -> None:
    _check((engine,), part, name, committed)


@pytest.mark.parametrize(("engine", "part", "name"), COMPILED_QUICK)
def test_a_few_graphs_of_compiled_engines(engine: str, part: str, name: str, committed: matrix.Matrix) -> None:
    _check((engine,), part, name, committed)


def test_a_cell_that_was_not_run_is_shown_as_such() -> None:
    rows = {"abs(T[n,4])": {"reference": {"f32": "exact", "f16": "exact"}, "tvm": {"f32": "exact"}}}
    page = matrix.page({"pointwise": rows})
    assert "| tvm | operators | 1 | 0 | 0 | 0 | 0 | 0 | 1 |" in page
    assert "| exact f32; not run f16 |" in page and "| not run |" in page


def _check(engines: Sequence[str], part: str, name: str, committed: matrix.Matrix) -> None:
    rows = committed[part]
    wrong = []
    for _, row, engine, column, verdict in run.judge((engines, part, name), listed(rows, part, name)):
        told = rows[row].get(engine, {}).get(column, "nothing")
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
