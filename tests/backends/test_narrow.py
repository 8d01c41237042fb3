"""int4, fp8 and NVFP4 in the ONNX engines: equal to their meaning, ties and all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ir import DimRange, Graph, TensorType, Value, interpret, op, symbol
from ir.narrow import E4M3
from tests.backends.cases import engine_of

ENGINES = ("onnxruntime", "openvino")
_WIDE, _OUT = 64, 48


def _made(kind: str, dtype: torch.dtype, bias: bool) -> Graph:
    graph = Graph(kind, {"n": DimRange(1, 64)})
    x = graph.add_input("input", "x", TensorType(dtype, (symbol("n"), 5, _WIDE)))
    seed = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (_OUT, _WIDE // 2), generator=seed, dtype=torch.uint8)
    added: Value | None = graph.add_param("b", torch.randn(_OUT, generator=seed)) if bias else None
    step = graph.add_param("x_scale", torch.tensor(2.0**-6))
    if kind == "int4":
        scale = graph.add_param("s", (torch.rand(_OUT, _WIDE // 16, generator=seed) / 9).to(dtype))
        weight = graph.insert(op("penstock.dequantize_int4.default"), graph.add_param("w", packed), scale, 16).result
        graph.returns(graph.insert(op("aten.linear.default"), x, weight).result, weight)
    elif kind == "fp8":
        w = graph.add_param("w", torch.randn(_OUT, _WIDE, generator=seed).to(E4M3))
        scale = graph.add_param("s", torch.rand(_OUT, generator=seed))
        graph.returns(graph.insert(op("penstock.fp8_linear.default"), x, w, scale, added, step).result)
    else:
        w, scale = graph.add_param("w", packed), graph.add_param("s", torch.tensor(0.03))
        blocks = graph.add_param("blocks", (torch.rand(_OUT, _WIDE // 16, generator=seed) * 9).to(E4M3))
        graph.returns(graph.insert(op("penstock.nvfp4_linear.default"), x, w, blocks, scale, added, step).result)
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
    graph = _made(kind, dtype, bias=dtype is torch.float32)
    run = engine_of(engine, graph, tmp_path)
    for rows in (1, 7):
        inputs = _inputs(rows, dtype)
        want, got = interpret(graph, inputs), run(inputs)
        for name, tensor in want.items():
            assert got[name].dtype is tensor.dtype
            loose = 2e-3 if dtype is torch.float16 else 1e-5
            torch.testing.assert_close(got[name], tensor, rtol=loose, atol=loose * float(tensor.abs().max()) / 100)
