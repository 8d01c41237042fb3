"""``rows`` on each engine: all, some and none alive; the form that an engine gets is on record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from backends import backend
from backends.base import CPU, Backend, Device, Engine, Unsupported
from backends.rows import prepared
from backends.segments import build_engine, load_engine, ready_for, refusals, simulated_segments
from ir import ROWS, Graph, interpret
from ir.copy import copy_graph
from ir.rows import MODES, lowered
from ir.weights import save
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


class _Bucketed(type(backend("reference"))):  # type: ignore[misc]
    """Straight lines only, and not every operator of them."""

    rows = "bucketed"

    def __init__(self, lacks: str = "") -> None:
        self.lacks = lacks
        self.sizes: list[int] = []

    def unsupported(self, graph: Graph, device: Device = CPU) -> list[Unsupported]:
        return [Unsupported(n.op.name, "", "it is not") for n in graph.walk() if n.regions or n.op.name == self.lacks]

    def load(self, folder: Path, threads: int | None = None, stem: str = "engine") -> Engine:
        return _Spy(super().load(folder, threads, stem), self.sizes)


class _Spy(Engine):
    def __init__(self, inner: Engine, sizes: list[int]) -> None:
        self.inner, self.sizes = inner, sizes

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.sizes.append(next(iter(inputs.values())).shape[0])
        return self.inner(inputs)


def test_bucketed_rows_run_in_a_few_sizes(tmp_path: Path) -> None:
    graph, inner = rows_of(BODY), _Bucketed()
    save(graph.weights, tmp_path / "weights.safetensors")
    built = build_engine(graph, tmp_path, inner)
    assert [(p.node, p.lowering, p.lazy) for p in built.flow] == [("rows at model.py:1", "bucketed", True)]
    engine = load_engine(tmp_path, inner)
    for live, size in ((), None), ((3,), 1), ((0, 5, 6), 4), (tuple(range(8)), 8):
        inner.sizes.clear()
        inputs = some_inputs(8, live)
        torch.testing.assert_close(engine(inputs)["y"], interpret(graph, inputs)["y"], rtol=1e-5, atol=1e-5)
        assert set(inner.sizes) == ({size} if size else set())


def test_rows_that_mix_are_cut_but_never_padded(tmp_path: Path) -> None:
    graph, inner = rows_of("%r: f32[u0, 3, 4] = aten.softmax.int(%a, 0)"), _Bucketed()
    save(graph.weights, tmp_path / "weights.safetensors")
    assert [p.lowering for p in build_engine(graph, tmp_path, inner).flow] == ["segments"]
    inputs = some_inputs(8, LIVE["some"])
    torch.testing.assert_close(load_engine(tmp_path, inner)(inputs)["y"], interpret(graph, inputs)["y"])
    assert inner.sizes == [3]


def test_rows_are_masked_where_the_engine_must_be_one_or_cannot_be_cut() -> None:
    graph = rows_of("%r: f32[u0, 3, 4] = aten.relu.default(%a)")
    assert ready_for(graph, _Bucketed()).graph is graph
    for ready in (ready_for(graph, _Bucketed(), whole=True), ready_for(graph, _Bucketed("aten.relu.default"))):
        assert [p.lowering for p in ready.flow] == ["masked"]


def test_tensorrt_gets_them_bucketed() -> None:
    graph, chosen = rows_of(BODY), backend("tensorrt")
    l4 = Device("l4", "cuda", 89)
    assert ready_for(graph, chosen, l4).graph is graph
    refused, left = refusals(graph, chosen, l4)
    assert refused and not left
    engine = simulated_segments(graph, chosen, l4)
    assert engine is not None
    for live in ((), (2,), (0, 5, 6), tuple(range(8))):
        inputs = some_inputs(8, live)
        torch.testing.assert_close(engine(inputs)["y"], interpret(graph, inputs)["y"], rtol=1e-4, atol=1e-4)


def test_a_graph_without_rows_is_handed_on() -> None:
    graph = copy_graph(load("cond"))
    assert prepared(graph, _Static()).graph is graph
