"""Narrow products on engines without narrow kernels: the same numbers as torch's own, and types kept."""

import pytest
import torch

from backends import backend
from backends.widen import is_narrow, widened
from ir import interpret, show, verify
from ir import weights as weight_files
from tests.passes.case import read

LAYER = """
    dim n [1, 8]
    param %w: {t}[12, 16] "w"
    input %x: f32[n, 16] "x"
    %a: {t}[n, 16] = aten.to.dtype(%x, !{t})
    %h: {t}[n, 12] = aten.linear.default(%a, %w)
    %y: f32[n, 12] = aten.to.dtype(%h, !f32)
    return "y" %y
    """
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


@pytest.mark.parametrize("name", DTYPES)
def test_products_compute_wide_and_round_back(name: str) -> None:
    dtype = DTYPES[name]
    torch.manual_seed(0)
    graph = read(LAYER.format(t=name), {"w": torch.randn(12, 16).to(dtype)})
    made = widened(graph)
    verify(made)
    assert any(map(is_narrow, graph.walk()))
    assert not any(map(is_narrow, made.walk()))
    x = {"x": torch.randn(5, 16)}
    want, got = interpret(graph, x)["y"], interpret(made, x)["y"]
    assert torch.allclose(want, got, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_a_float32_graph_is_left_as_it_is() -> None:
    graph = read(LAYER.format(t="f32"), {"w": torch.randn(12, 16)})
    before = show(graph)
    assert widened(graph) is graph
    assert show(graph) == before


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_engines_carry_bf16(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    graph = read(LAYER.format(t="bf16"), {"w": torch.randn(12, 16).bfloat16()})
    found = backend(name)
    assert found.unsupported(graph) == []
    weight_files.save(graph.weights, tmp_path / "weights.safetensors")
    found.build(graph, tmp_path)
    x = {"x": torch.randn(5, 16)}
    got = found.load(tmp_path)(x)["y"]
    assert torch.allclose(got, interpret(graph, x)["y"], rtol=0.02, atol=0.02)
