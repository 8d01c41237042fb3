"""The native attention layer where it is legal, products around a softmax where it is not."""

from __future__ import annotations

import pytest
import torch

from backends.base import Device
from backends.tensorrt.builder import build
from backends.tensorrt.emit import emit, profile_of
from backends.tensorrt.simulate import Simulation
from ir import Graph, interpret, parse

A10 = Device("a10", "cuda", 86)


def _graph(mask: str = "None", more: str = "", heads: int = 4, width: int = 64, dtype: str = "f16") -> Graph:
    given = {"None": "", "bool": "bool[n, 1, m, m]", "add": f"{dtype}[m, m]"}[mask]
    lines = [
        "penstock-ir 1", 'graph "attention"', "dim n [1, 8]", "dim m [1, 32]",
        f'input %q: {dtype}[n, 4, m, {width}] "q"', f'input %k: {dtype}[n, {heads}, m, {width}] "k"',
        f'input %v: {dtype}[n, {heads}, m, {width}] "v"', *([f'input %mask: {given} "mask"'] if given else []),
        f"%y: {dtype}[n, 4, m, {width}] = aten.scaled_dot_product_attention.default(%q, %k, %v, "
        f"{'%mask' if given else 'None'}{more})",
        'return "y" %y',
    ]  # fmt: skip
    return parse("\n".join(lines) + "\n", {})


def _inputs(graph: Graph) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, value in graph.arguments("input"):
        shape = [d if isinstance(d, int) else {"n": 2, "m": 5}[d.name] for d in value.tensor.shape]
        made[name] = torch.randn(shape, generator=generator).to(value.tensor.dtype)
        if value.tensor.dtype == torch.bool:
            made[name] = torch.rand(shape, generator=generator) > 0.4
            made[name][0, 0, 1] = False  # a row with nothing to attend to
    return made


CASES = {
    "plain": (_graph, 1), "bool mask": (lambda: _graph("bool"), 1), "added mask": (lambda: _graph("add"), 1),
    "causal": (lambda: _graph(more=", 0.0, True"), 1), "scale": (lambda: _graph(more=", 0.0, False, scale=0.3"), 1),
    "grouped": (lambda: _graph(heads=2, more=", enable_gqa=True"), 1),
    "bf16": (lambda: _graph(dtype="bf16"), 1), "f32": (lambda: _graph(dtype="f32"), 0),
    "odd width": (lambda: _graph(width=20), 0),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_attention_equals_torch(case: str) -> None:
    make, native = CASES[case]
    graph = make()
    run = Simulation(emit(graph, A10))
    assert run.facts()["attentions"] == native
    inputs = _inputs(graph)
    want, got = interpret(graph, inputs)["y"], run(inputs)["y"]
    torch.testing.assert_close(got.float(), want.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("case", ["bool mask", "causal", "grouped", "odd width"])
def test_attention_builds(case: str) -> None:
    graph = CASES[case][0]()
    build(emit(graph, A10), profile_of(graph, 64)[0], A10)


def test_within_a_branch_it_is_made_of_products() -> None:
    text = """penstock-ir 1
graph "branch"
input %q: f16[1, 4, 5, 64] "q"
%top: f16[] = aten.amax.default(%q)
%go: bool[] = aten.gt.Scalar(%top, 0.0)
%y: f16[1, 4, 5, 64] = cond(%go, [%q]) do
region(%a: f16[1, 4, 5, 64])
  %b: f16[1, 4, 5, 64] = aten.scaled_dot_product_attention.default(%a, %a, %a)
  return %b
end
region(%c: f16[1, 4, 5, 64])
  return %c
end
return "y" %y
"""
    graph = parse(text, {})
    emitted = emit(graph, A10)
    run = Simulation(emitted)
    assert run.facts()["attentions"] == 0
    for sign in (1.0, -1.0):
        inputs = {"q": sign * torch.rand(1, 4, 5, 64, generator=torch.Generator().manual_seed(0)).half()}
        torch.testing.assert_close(run(inputs)["y"], interpret(graph, inputs)["y"], rtol=2e-2, atol=2e-2)
    build(emitted, {}, A10)
