"""What every backend promises: states, names, shared weights, small files, whole lists of what it refuses."""

from __future__ import annotations

import ast
from pathlib import Path

import onnx
import pytest
import torch

import backends
from backends import BACKENDS, CPU, backend
from backends.onnx_emit import emit
from ir import DimRange, Graph, Origin, Output, PenstockError, TensorType, Value, interpret, op, symbol
from ir.errors import UnsupportedError, UntrustedError, UsageError
from ir.weights import layout
from tests.backends.cases import Built, Call, engine_of

EVERY = tuple(b.name for b in BACKENDS if not b.patient and not b.why_not(CPU))
ENGINES = ("onnxruntime", "openvino")
N = symbol("n")


def _graph() -> Graph:
    return Graph("g", {"n": DimRange(1, 64)})


def _input(graph: Graph, name: str = "x", shape: tuple[object, ...] = (N, 4), kind: str = "input") -> Value:
    return graph.add_input(kind, name, TensorType(torch.float32, shape))  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", EVERY)
def test_states_come_back_under_their_name(engine: str, tmp_path: Path) -> None:
    graph = _graph()
    x, cache = _input(graph, shape=(1, 2, 1, 4)), _input(graph, "cache", (1, 2, 8, 4), "state")
    at = graph.add_input("input", "at", TensorType(torch.int64, (1,)))
    written = graph.insert(op("aten.index_copy.default"), cache, 2, at, x).result
    total = graph.insert(op("aten.sum.dim_IntList"), written, (2,)).result
    graph.returns(total, written, outputs=[Output("output", "total"), Output("state", "cache")])
    run = engine_of(engine, graph, tmp_path)
    state = torch.zeros(1, 2, 8, 4)
    for step in range(3):
        inputs = {"x": torch.randn(1, 2, 1, 4), "at": torch.tensor([step]), "cache": state}
        got, want = run(inputs), interpret(graph, inputs)
        assert list(got) == ["total", "state:cache"]
        torch.testing.assert_close(got, want)
        state = got["state:cache"]


@pytest.mark.parametrize("engine", EVERY)
def test_results_survive_the_next_call(engine: str, tmp_path: Path) -> None:
    graph = _graph()
    graph.returns(graph.insert(op("aten.neg.default"), _input(graph)).result)
    run = engine_of(engine, graph, tmp_path)
    first = run({"x": torch.ones(2, 4)})["output_0"]
    run({"x": torch.zeros(2, 4)})
    assert torch.equal(first, -torch.ones(2, 4))


@pytest.mark.parametrize("engine", EVERY)
def test_outputs_may_be_inputs_weights_and_each_other(engine: str, tmp_path: Path) -> None:
    graph = _graph()
    x, unread = _input(graph), _input(graph, "unread")
    w = graph.add_param("w", torch.ones(3))
    y = graph.insert(op("aten.abs.default"), x).result
    names = ["x", "w", "y", "again", "output:y", "kept"]
    graph.returns(x, w, y, y, y, unread, outputs=[Output("output", n) for n in names])
    run = engine_of(engine, graph, tmp_path)
    inputs = {"x": torch.randn(2, 4), "unread": torch.randn(2, 4)}
    torch.testing.assert_close(run(inputs), interpret(graph, inputs))


@pytest.mark.parametrize("engine", ENGINES)
def test_inputs_nobody_reads_and_strided_inputs_are_taken(engine: str, tmp_path: Path) -> None:
    graph = _graph()
    _input(graph, "unread")
    x = _input(graph)
    graph.returns(graph.insert(op("aten.neg.default"), x).result)
    run = engine_of(engine, graph, tmp_path)
    x_value = torch.randn(4, 3).T
    assert torch.equal(run({"unread": torch.zeros(1, 4), "x": x_value})["output_0"], -x_value)


@pytest.mark.parametrize("engine", ENGINES)
def test_tied_and_empty_weights(engine: str, tmp_path: Path) -> None:
    graph = _graph()
    ids = graph.add_input("input", "ids", TensorType(torch.int64, (N,)))
    table = graph.add_param("table", torch.randn(9, 4))
    nothing = graph.add_param("nothing", torch.empty(0, 4))
    rows = graph.insert(op("aten.embedding.default"), table, ids).result
    joined = graph.insert(op("aten.cat.default"), (rows, nothing)).result
    graph.returns(graph.insert(op("aten.linear.default"), joined, table).result)
    assert len(emit(graph, layout(graph.weights)[1]).graph.initializer) == 2  # not a copy of the table for each reader
    inputs = {"ids": torch.tensor([3, 0, 8])}
    torch.testing.assert_close(engine_of(engine, graph, tmp_path)(inputs), interpret(graph, inputs))


def test_weights_stay_in_their_file() -> None:
    graph = _graph()
    x = _input(graph, shape=(N, 40_000))
    # no memory behind it: 3.2 GB that are never touched
    w = graph.add_param("w", torch.empty(1).expand(20_000, 40_000))
    graph.returns(graph.insert(op("aten.linear.default"), x, w).result)
    spans = layout(graph.weights)[1]
    model = emit(graph, spans, "openvino")
    assert spans["w"][1] == 3_200_000_000
    assert model.ByteSize() < 2000
    told = {e.key: e.value for t in model.graph.initializer for e in t.external_data}
    assert told == {"location": "weights.safetensors", "offset": str(spans["w"][0]), "length": "3200000000"}


def test_all_that_is_unsupported_is_listed() -> None:
    graph = _graph()
    x = _input(graph)
    for line in (7, 9):
        origin = Origin("layer", f"model.py:{line}")
        x = graph.insert(op("aten.digamma.default"), x, origin=origin).result
    inverse = graph.insert(op("aten.erfinv.default"), x).result
    graph.returns(inverse)
    found = backend("onnxruntime").unsupported(graph)
    assert [(f.op, f.origin) for f in found] == [
        ("aten.digamma.default", "layer @ model.py:7"),
        ("aten.digamma.default", "layer @ model.py:9"),
        ("aten.erfinv.default", ""),
    ]
    with pytest.raises(UnsupportedError, match=r"3 operator\(s\)"):
        emit(graph, {})


def test_dropout_that_would_drop_is_refused() -> None:
    assert backend("openvino").unsupported(Built([Call("dropout", "f32[n,4]", 0.5, True)]).graph)


def test_bfloat16_storage(tmp_path: Path) -> None:
    graph = _graph()
    stored = graph.add_param("w", torch.randn(4, 4).bfloat16())
    wide = graph.insert(op("aten.to.dtype"), stored, torch.float32).result
    y = graph.insert(op("aten.linear.default"), _input(graph), wide).result
    graph.returns(graph.insert(op("aten.to.dtype"), y, torch.bfloat16).result)
    inputs = {"x": torch.randn(3, 4)}
    for engine in ENGINES:
        folder = tmp_path / engine
        folder.mkdir()
        got = engine_of(engine, graph, folder)(inputs)
        torch.testing.assert_close(got, interpret(graph, inputs), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("engine", EVERY)
def test_a_folder_without_an_engine_is_no_engine(engine: str, tmp_path: Path) -> None:
    with pytest.raises(UntrustedError):
        backend(engine).load(tmp_path)


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_errors_are_one_sentence(engine: str, tmp_path: Path) -> None:
    graph = _graph()
    graph.returns(graph.insert(op("aten.matmul.default"), _input(graph), _input(graph, "y", (4, N))).result)
    run = engine_of(engine, graph, tmp_path)
    with pytest.raises(PenstockError) as caught:
        run({"x": torch.randn(2, 4), "y": torch.randn(5, 2)})
    assert "\n" not in caught.value.what
    assert "onnxruntime_src" not in caught.value.what
    (tmp_path / "engine.onnx").write_bytes(b"not a model")
    with pytest.raises(PenstockError):
        backend(engine).load(tmp_path)


def test_backends_by_name() -> None:
    assert [backend(name).name for name in EVERY] == list(EVERY)
    with pytest.raises(UsageError, match="openvino"):
        backend("openvin")


def test_importing_backends_imports_no_engine() -> None:
    for file in Path(backends.__file__).parent.glob("*.py"):
        first = [n for n in ast.parse(file.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))]
        names = {a.name for n in first if isinstance(n, ast.Import) for a in n.names}
        names |= {str(n.module) for n in first if isinstance(n, ast.ImportFrom)}
        assert not any(name.split(".")[0] in ("onnx", "onnxruntime", "openvino") for name in names), file.name
        assert not any(name.startswith("backends.onnx_emit") for name in names), file.name


def test_models_are_valid_onnx(tmp_path: Path) -> None:
    graph = _graph()
    w = graph.add_param("w", torch.randn(4, 4))
    graph.returns(graph.insert(op("aten.linear.default"), _input(graph), w).result)
    engine_of("openvino", graph, tmp_path)
    onnx.checker.check_model(str(tmp_path / "engine.onnx"), full_check=True)
