"""int4, fp8 and NVFP4 in the ONNX engines: equal to their meaning, ties and all."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from backends.openvino_engine import _computes_in_bf16
from backends.payload import payload, write
from ir import DimRange, Graph, TensorType, Value, interpret, op, symbol
from ir.narrow import E4M3
from ir.weights import save
from tests.backends.cases import Built, Call, engine_of

ENGINES = ("onnxruntime", "openvino")
_WIDE, _OUT = 64, 48


def _made(kinds: str, dtype: torch.dtype, bias: bool) -> Graph:
    graph = Graph("narrow", {"n": DimRange(1, 64)})
    x = graph.add_input("input", "x", TensorType(dtype, (symbol("n"), 5, _WIDE)))
    seed = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (_OUT, _WIDE // 2), generator=seed, dtype=torch.uint8)
    four = graph.add_param("four", packed)
    added: Value | None = graph.add_param("b", torch.randn(_OUT, generator=seed)) if bias else None
    step = graph.add_param("x_scale", torch.tensor(2.0**-6))
    results: list[Value] = []
    if "int4" in kinds:
        scale = graph.add_param("s4", (torch.rand(_OUT, _WIDE // 16, generator=seed) / 9).to(dtype))
        weight = graph.insert(op("penstock.dequantize_int4.default"), four, scale, 16).result
        results += [graph.insert(op("aten.linear.default"), x, weight).result, weight]
    if "fp8" in kinds:
        eight = graph.add_param("eight", torch.randn(_OUT, _WIDE, generator=seed).to(E4M3))
        scale = graph.add_param("s8", torch.rand(_OUT, generator=seed))
        results.append(graph.insert(op("penstock.fp8_linear.default"), x, eight, scale, added, step).result)
    if "nvfp4" in kinds:
        scale = graph.add_param("s", torch.tensor(0.03))
        blocks = graph.add_param("blocks", (torch.rand(_OUT, _WIDE // 16, generator=seed) * 9).to(E4M3))
        made = graph.insert(op("penstock.nvfp4_linear.default"), x, four, blocks, scale, added, step)
        results.append(made.result)
    graph.returns(*results)
    return graph


def _inputs(rows: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Multiples of 2**-13, which x_scale brings to many ties, and magnitudes from subnormal to saturated."""
    seed = torch.Generator().manual_seed(rows)
    x = torch.randint(-64, 65, (rows, 5, _WIDE), generator=seed).float() * 2.0**-13
    x[:, 1] *= 2.0**-4
    x[:, 2] *= 2.0**6
    x[:, 3] *= 2.0**12
    x[:, 4, :32] = 0.0
    return {"x": x.to(dtype)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
@pytest.mark.parametrize("kind", ["int4", "fp8", "nvfp4"])
def test_twin_is_the_meaning(kind: str, dtype: torch.dtype, engine: str, tmp_path: Path) -> None:
    _compare(_made(kind, dtype, bias=dtype is torch.float32), engine, dtype, tmp_path)


@pytest.mark.slow
def test_inductor_traces_through_the_meaning(tmp_path: Path) -> None:
    _compare(_made("int4 fp8 nvfp4", torch.float32, bias=True), "inductor", torch.float32, tmp_path)


def _compare(graph: Graph, engine: str, dtype: torch.dtype, folder: Path) -> None:
    run = engine_of(engine, graph, folder)
    loose = 2e-3 if dtype is torch.float16 else 1e-5
    for rows in (1, 7):
        inputs = _inputs(rows, dtype)
        want, got = interpret(graph, inputs), run(inputs)
        for name, tensor in want.items():
            assert got[name].dtype is tensor.dtype
            torch.testing.assert_close(got[name], tensor, rtol=loose, atol=loose * float(tensor.abs().max()) / 100)


def test_float32_beside_bfloat16_stays_float32(tmp_path: Path) -> None:
    """OpenVINO takes one precision for a whole model: bfloat16 only where no product is float32."""
    narrow, wide = Call("linear", "bf16[n,64]", "%bf16[48,64]"), Call("linear", "f32[n,64]", "%f32[48,64]")
    for calls, want in (([narrow], True), ([wide], False), ([narrow, wide], False)):
        built = Built(calls)
        save(built.graph.weights, tmp_path / "weights.safetensors")
        write(built.graph, tmp_path, "openvino", "engine")
        assert _computes_in_bf16(onnx.load(payload(tmp_path, "engine"), load_external_data=False).graph) is want
