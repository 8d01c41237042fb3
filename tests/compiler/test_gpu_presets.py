"""The presets for GPUs: casts first, then the format; types fit, linears get the operator, the ONNX twin agrees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compiler.capture.capture import capture
from compiler.pipeline.pipeline import Pipeline
from compiler.pipeline.recipe import PRESETS
from compiler.spec import Dim, ModelSpec
from ir import Graph, interpret, verify
from ir.copy import copy_graph
from passes import PASSES, parse_passes
from tests.backends.cases import engine_of

_WIDTH = 128
_OPERATOR = {
    "fp16": "aten.linear.default",
    "int8-symmetric": "penstock.int8_linear_static.default",
    "int8-weights": "quantized_decomposed.dequantize_per_channel.default",
    "int4": "penstock.dequantize_int4.default",
    "fp8": "penstock.fp8_linear.default",
    "nvfp4": "penstock.nvfp4_linear.default",
}
_LEAST = {"int4": 0.99, "nvfp4": 0.98}


class Block(nn.Module):
    """Attention and a feed-forward, each after a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norms = nn.ModuleList(nn.LayerNorm(_WIDTH) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(_WIDTH, _WIDTH, bias=i % 2 == 0) for i in range(4))
        self.up, self.down = nn.Linear(_WIDTH, 256), nn.Linear(256, _WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norms[0](x)
        q, k, v = (f(h).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


@pytest.fixture(scope="module")
def made() -> tuple[Graph, list[dict[str, torch.Tensor]]]:
    torch.manual_seed(1)
    samples = [{"x": torch.randn(n, 16, _WIDTH)} for n in (4, 8)]
    return capture(ModelSpec(Block().eval(), samples[0], {"x": {0: Dim("batch", 1, 16)}}, name="block")), samples


@pytest.mark.parametrize("preset", _OPERATOR)
def test_preset(preset: str, made: tuple[Graph, list[dict[str, torch.Tensor]]], tmp_path: Path) -> None:
    start, samples = made
    graph = copy_graph(start)
    unseen = {"x": torch.randn(3, 16, _WIDTH)}
    want = next(iter(interpret(graph, unseen).values()))
    Pipeline(*parse_passes(PRESETS[preset], PASSES)).run(graph, samples=samples)
    verify(graph)
    operators = [n for n in graph if n.op.name == _OPERATOR[preset]]
    assert len(operators) == 6
    if preset == "int8-symmetric":
        assert {n.args[5] for n in operators} == {128}
    if preset in ("int8-symmetric", "fp8", "nvfp4"):
        steps = [n.args[4 if preset != "nvfp4" else 5] for n in operators]
        assert len(set(steps)) == 4, "query, key and value share the scale of what they read"
    assert all(n.result.tensor.dtype is torch.float16 for n in operators)
    meant = next(iter(interpret(graph, unseen).values()))
    got = next(iter(engine_of("onnxruntime", graph, tmp_path)(unseen).values()))
    assert _cosine(meant, want) > _LEAST.get(preset, 0.999)
    assert _cosine(got, meant) > 0.9995


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))
