"""Narrow formats: every code, every tie, and the operators against arithmetic written out in full."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from ir import Graph, IRError, TensorType, interpret, op, parse, show
from ir.narrow import (
    E2M1,
    E4M3,
    dequantize_int4,
    e2m1_codes,
    e2m1_values,
    fp8_linear,
    nvfp4_linear,
    nvfp4_rows,
    pack_halves,
    to_e2m1,
    to_e4m3,
    unpack_halves,
)
from ir.weights import load, save


def test_packing_is_inverted_for_every_byte_and_puts_the_earlier_one_low() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(4, 64)
    assert torch.equal(pack_halves(unpack_halves(every)), every)
    assert pack_halves(torch.tensor([3, -2])).item() == 0xE3


def test_e2m1_rounds_to_the_nearest_value_ties_to_the_even_code() -> None:
    grid = E2M1[:8]
    for low, high in itertools.pairwise(range(8)):
        middle = torch.tensor((grid[low] + grid[high]) / 2)
        even = grid[low if low % 2 == 0 else high]
        below, above = torch.nextafter(middle, torch.tensor(0.0)), torch.nextafter(middle, torch.tensor(9.0))
        for sign in (1, -1):
            got = to_e2m1(sign * torch.stack((below, middle, above)))
            assert got.tolist() == [sign * grid[low], sign * even, sign * grid[high]]
    assert to_e2m1(torch.tensor([6.9, 1e30, -torch.inf])).tolist() == [6.0, 6.0, -6.0]
    assert to_e2m1(torch.tensor(torch.nan)).isnan()


def test_e2m1_codes_are_the_values() -> None:
    values = torch.tensor([v for v in E2M1 if v or str(v) == "0.0"] + [0.0])
    assert torch.equal(e2m1_values(pack_halves(e2m1_codes(values))), values)


def test_e4m3_saturates_and_breaks_ties_to_even() -> None:
    got = to_e4m3(torch.tensor([449.0, 1e9, -torch.inf, 17.0, 19.0, 2.0**-10, 3 * 2.0**-10])).float()
    assert got.tolist() == [448.0, 448.0, -448.0, 16.0, 20.0, 0.0, 2.0**-8]
    assert to_e4m3(torch.tensor(torch.nan)).float().isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dequantize_int4(dtype: torch.dtype) -> None:
    q = torch.tensor([[-8, 7, 0, -1], [1, 2, -3, 4]])
    scale = torch.tensor([[0.5, 2.0], [0.3, 0.25]], dtype=dtype)
    got = dequantize_int4(pack_halves(q), scale, 2)
    assert torch.equal(got, q.to(dtype) * scale.repeat_interleave(2, 1))
    assert got.dtype is dtype


def test_fp8_linear_is_exact_on_what_e4m3_holds() -> None:
    made = torch.Generator().manual_seed(0)
    x = torch.randint(-8, 9, (3, 5, 16), generator=made).half()
    w = torch.randint(-8, 9, (4, 16), generator=made).float()
    scale, bias = torch.tensor([1.0, 0.5, 2.0, 0.25]), torch.arange(4.0)
    got = fp8_linear(x * 2, w.to(E4M3), scale, bias, torch.tensor(2.0))
    assert torch.equal(got, (x.float() @ w.t() * (2 * scale) + bias).half())
    clipped = fp8_linear(torch.full((1, 16), 1e4), w.to(E4M3), scale, None, torch.tensor(1.0))
    assert torch.equal(clipped, 448.0 * w.sum(1)[None] * scale)


def test_nvfp4_linear_is_exact_on_what_it_holds() -> None:
    made = torch.Generator().manual_seed(0)
    x, w = (torch.tensor(E2M1)[torch.randint(0, 16, (n, 32), generator=made)] for n in (5, 4))
    x[:, ::16], w[:, ::16] = 6.0, 6.0  # so that each block's scale is its own
    x_blocks, w_blocks = (torch.tensor([[2.0, 0.5]]).expand(n, 2) for n in (5, 4))
    wide_x, wide_w = ((v.unflatten(-1, (2, 16)) * b[..., None]).flatten(1) for v, b in ((x, x_blocks), (w, w_blocks)))
    scale, x_scale = torch.tensor(0.25), torch.tensor(0.125)
    got = nvfp4_linear(
        wide_x * x_scale, pack_halves(e2m1_codes(w)), w_blocks.to(E4M3), scale, torch.arange(4.0), x_scale
    )
    assert torch.equal(got, wide_x @ wide_w.t() * (scale * x_scale) + torch.arange(4.0))


def test_nvfp4_of_silent_huge_and_broken_blocks() -> None:
    x = torch.zeros(4, 16)
    x[1, 0], x[2, 0], x[3, 0] = 1e9, 1e-9, torch.nan
    q, step = nvfp4_rows(x, torch.tensor(1.0))
    assert (q * step.float())[0].abs().sum() == 0
    assert (q * step.float())[1, 0] == 6 * 448
    assert (q * step.float())[2].abs().sum() == 0
    assert (q * step.float())[3].isnan().all()


def build() -> Graph:
    graph = Graph("narrow")
    made = torch.Generator().manual_seed(0)

    def u8(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, shape, generator=made, dtype=torch.uint8)

    x = graph.add_input("input", "x", TensorType(torch.float16, (3, 32)))
    step = graph.add_param("x_scale", torch.tensor(0.05))
    steps = graph.add_param("blocks", (torch.rand(32, 2, generator=made) + 0.5).to(E4M3))
    p = graph.add_param("packed", u8(32, 16))
    int4 = graph.insert(op("penstock.dequantize_int4.default"), p, graph.add_param("s4", torch.rand(32, 2).half()), 16)
    a = graph.insert(op("aten.linear.default"), x, int4.result).result
    w8 = graph.add_param("w8", torch.randn(32, 32, generator=made).to(E4M3))
    b = graph.insert(op("penstock.fp8_linear.default"), a, w8, graph.add_param("s8", torch.rand(32)), None, step).result
    c = graph.insert(
        op("penstock.nvfp4_linear.default"), b, p, steps, graph.add_param("s", torch.tensor(0.1)), None, step
    )
    graph.returns(c.result)
    return graph


def test_text_and_weights_round_trip(tmp_path: Path) -> None:
    graph = build()
    save(graph.weights, tmp_path / "w.safetensors")
    again = parse(show(graph), load(tmp_path / "w.safetensors"))
    assert show(again) == show(graph)
    x = {"x": torch.randn(3, 32).half()}
    (want,), (got,) = interpret(graph, x).values(), interpret(again, x).values()
    assert torch.equal(got, want)
    assert got.dtype is torch.float16


def test_operands_that_do_not_belong_together_are_refused() -> None:
    graph = Graph("bad")
    x = graph.add_input("input", "x", TensorType(torch.float32, (3, 32)))
    one = graph.add_param("one", torch.tensor(1.0))
    packed = graph.add_param("packed", torch.zeros(4, 16, dtype=torch.uint8))
    scale, blocks = graph.add_param("s", torch.ones(4, 1)), graph.add_param("b", torch.ones(4, 4).to(E4M3))
    with pytest.raises(IRError, match="one entry per block"):
        graph.insert(op("penstock.dequantize_int4.default"), packed, scale, 8)
    with pytest.raises(IRError, match="not e4m3"):
        graph.insert(op("penstock.fp8_linear.default"), x, packed, scale, None, one)
    with pytest.raises(IRError, match="one entry per 16"):
        graph.insert(op("penstock.nvfp4_linear.default"), x, packed, blocks, one, None, one)
