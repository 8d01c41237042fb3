"""``rows`` on each engine: all, some and none alive; the form that an engine gets is on record."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backends import backend
from backends.base import Backend
from backends.rows import prepared
from ir import ROWS, interpret
from ir.copy import copy_graph
from ir.rows import MODES, lowered
from tests.backends.cases import engine_of
from tests.corpus import load
from tests.row_regions import LIVE, rows_of, some_inputs

BODY = """%t: f32[u0, 3, 4] = aten.linear.default(%a, %c)
%n: int<u0> = aten.sym_size.int(%a, 0)
%s: f32[u0, 12] = aten.reshape.default(%t, [%n, 12])
%q: f32[u0, 3, 4] = aten.reshape.default(%s, [%n, 3, 4])
%o: f32[u0, 3, 4] = aten.scaled_dot_product_attention.default(%q, %a, %a, %b)
%r: f32[u0, 3, 4] = aten.add.Tensor(%o, %a)"""
ENGINES = ("onnxruntime", "openvino", "reference")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", [*MODES, "as it is"])
def test_every_form_gives_what_the_region_means(engine: str, mode: str, tmp_path: Path) -> None:
    graph = rows_of(BODY)
    run = engine_of(engine, graph if mode == "as it is" else lowered(graph, mode), tmp_path)
    for inputs in (some_inputs(1, ()), some_inputs(1, (0,)), *(some_inputs(8, live) for live in LIVE.values())):
        want = interpret(graph, inputs)["y"]
        torch.testing.assert_close(run(inputs)["y"], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_of_rows(engine: str, tmp_path: Path) -> None:
    graph = load("rows_nested")
    run = engine_of(engine, graph, tmp_path)
    for shift in (-3.0, 0.0, 3.0):
        x = torch.randn(7, 6, generator=torch.Generator().manual_seed(0)) + shift
        torch.testing.assert_close(run({"x": x})["y"], interpret(graph, {"x": x})["y"], rtol=1e-5, atol=1e-5)


class _Static(type(backend("reference"))):  # type: ignore[misc]  # any backend will do
    rows = "masked"


@pytest.mark.parametrize("engine", ENGINES)
def test_these_engines_gather(engine: str) -> None:
    graph = rows_of(BODY)
    ready = prepared(graph, backend(engine))
    assert not ready.refused and not any(n.op is ROWS for n in ready.graph.walk())
    (proof,) = ready.flow
    assert (proof.node, proof.lowering, proof.evidence) == ("rows at model.py:1", "compacted", "none")
    assert any(n.op is ROWS for n in graph.walk()), "the graph itself is left alone"


def test_a_static_engine_gets_them_masked_or_says_why_not() -> None:
    static: Backend = _Static()
    assert Backend.rows == "masked", "what a backend gets that says nothing"
    ready = prepared(rows_of(BODY), static)
    assert [p.lowering for p in ready.flow] == ["masked"]
    assert not any(n.op.name == "aten.nonzero.default" for n in ready.graph.walk())
    mixing = prepared(rows_of("%r: f32[u0, 3, 4] = aten.softmax.int(%a, 0)"), static)
    (fault,) = mixing.refused
    assert str(fault) == ("rows at model.py:1: cannot be masked: aten.softmax.int works along the axis of the rows")


def test_a_graph_without_rows_is_handed_on() -> None:
    graph = copy_graph(load("cond"))
    assert prepared(graph, _Static()).graph is graph
