"""Integer products: exact against the meaning of the operators, and really in int8 inside the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backends import backend
from backends.onnx_emit import emit
from compiler.artifact import cpu_flags
from ir import Arg, DimRange, Graph, Node, TensorType, Value, interpret, op, symbol
from ir.weights import layout
from tests.backends.cases import engine_of

ENGINES = ("onnxruntime", "openvino")
LARGEST = 127 if any("vnni" in flag for flag in cpu_flags()) else 63
"""Of a weight: without VNNI both engines add pairs of int8 products in 16 bits, which larger ones would saturate."""
_WIDE, _OUT = 64, 48


def _start() -> tuple[Graph, Value]:
    graph = Graph("int8", {"n": DimRange(1, 64)})
    return graph, graph.add_input("input", "x", TensorType(torch.float32, (symbol("n"), 5, _WIDE)))


def _linear(graph: Graph, x: Value, kind: str, *rest: Arg, seed: int = 0) -> Node:
    made = torch.Generator().manual_seed(seed)
    weight = graph.add_param("w", torch.randint(-LARGEST, LARGEST + 1, (_OUT, _WIDE), generator=made, dtype=torch.int8))
    scale = graph.add_param("s", torch.rand(_OUT, generator=made) * 0.01 + 0.001)
    bias = graph.add_param("b", torch.randn(_OUT, generator=made))
    return graph.insert(op(f"penstock.int8_linear_{kind}.default"), x, weight, scale, bias, *rest)


def _inputs(rows: int) -> dict[str, torch.Tensor]:
    # multiples of 1/256 keep away from the ties where one rounding differs
    made = torch.randn(rows, 5, _WIDE, generator=torch.Generator().manual_seed(rows))
    return {"x": made}


def _compare(graph: Graph, engine: str, folder: Path, flips: int = 0) -> dict[str, int | str]:
    run = engine_of(engine, graph, folder)
    for rows in (1, 7):
        inputs = _inputs(rows)
        want, got = interpret(graph, inputs), run(inputs)
        for name, tensor in want.items():
            far = (got[name] - tensor).abs() > 1e-5 + 1e-5 * tensor.abs()
            assert int(far.any(-1).sum()) <= flips, f"{int(far.sum())} elements differ"
            torch.testing.assert_close(got[name], tensor, rtol=0.02, atol=0.05)
    return dict(run.facts())


def test_dynamic_is_exact_and_shares_the_activation(tmp_path: Path) -> None:
    graph, x = _start()
    results = [_linear(graph, x, "dynamic", seed=i).result for i in range(3)]
    graph.returns(*results)
    model = emit(graph, layout(graph.weights)[1], "onnxruntime")
    assert [n.op_type for n in model.graph.node].count("DynamicQuantizeLinear") == 1
    facts = _compare(graph, "onnxruntime", tmp_path)
    assert facts["int8_matmuls"] == facts["matmuls"] == 3


def test_dynamic_is_refused_where_it_would_not_be_int8() -> None:
    graph, x = _start()
    graph.returns(_linear(graph, x, "dynamic").result)
    assert [f.op for f in backend("openvino").unsupported(graph)] == ["penstock.int8_linear_dynamic.default"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("smooth", [False, True])
def test_static_is_int8(engine: str, smooth: bool, tmp_path: Path) -> None:
    graph, x = _start()
    steps = torch.rand(_WIDE) * 0.02 + 0.01 if smooth else torch.tensor(0.03)
    step = graph.add_param("x_scale", steps)
    first = _linear(graph, x, "static", step, 120, seed=1).result
    second = _linear(graph, x, "static", step, 120, seed=2).result
    graph.returns(first, second)
    # a division is a multiplication by the inverse in the engine: at a tie, one step may go the other way
    facts = _compare(graph, engine, tmp_path, flips=3)
    assert facts["int8_matmuls"] == facts["matmuls"] == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_quantize_dequantize_pairs_become_int8(engine: str, tmp_path: Path) -> None:
    graph, x = _start()
    domain = "quantized_decomposed"
    whole: tuple[Arg, ...] = (0.03, 128, 0, 255, torch.uint8)
    quantized = graph.insert(op(f"{domain}.quantize_per_tensor.default"), x, *whole).result
    left = graph.insert(op(f"{domain}.dequantize_per_tensor.default"), quantized, *whole).result
    made = torch.Generator().manual_seed(0)
    weight = graph.add_param("w", torch.randint(-LARGEST, LARGEST + 1, (_OUT, _WIDE), generator=made, dtype=torch.int8))
    scales = graph.add_param("s", torch.rand(_OUT, generator=made) * 0.01 + 0.001)
    zeros = graph.add_param("z", torch.zeros(_OUT, dtype=torch.int64))
    bounds: tuple[Arg, ...] = (0, -128, 127, torch.int8)
    right = graph.insert(op(f"{domain}.dequantize_per_channel.default"), weight, scales, zeros, *bounds).result
    bias = graph.add_param("b", torch.randn(_OUT, generator=made))
    graph.returns(graph.insert(op("aten.linear.default"), left, right, bias).result)
    facts = _compare(graph, engine, tmp_path, flips=3)
    assert facts["int8_matmuls"] == facts["matmuls"] == 1
