"""Narrow formats: the emitted network against the meaning, and what the built plan multiplies."""

from __future__ import annotations

import pytest
import torch

from backends.base import Device
from backends.tensorrt.builder import build
from backends.tensorrt.emit import emit, emit_all, profile_of
from backends.tensorrt.plan import STUDIED, facts, read
from backends.tensorrt.simulate import simulate
from ir import Graph, interpret, parse, show

_HEAD = """penstock-ir 1
graph "formats"
dim n [1, 64]
input %x: f16[n, 64] "x"
"""
_GENERATOR = 3


def _graph(body: str, weights: dict[str, torch.Tensor]) -> Graph:
    return parse(_HEAD + body.strip() + "\n", weights)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(_GENERATOR))


def int8(zero: int = 128, channels: bool = False) -> Graph:
    """W8A8."""
    shape = "[64]" if channels else "[]"
    return _graph(
        f"""
param %w: i8[32, 64] "w"
param %s: f32[32] "s"
param %b: f32[32] "b"
param %t: f32{shape} "t"
%y: f16[n, 32] = penstock.int8_linear_static.default(%x, %w, %s, %b, %t, {zero})
return "y" %y
""",
        {
            "w": (_random(32, 64) * 30).round().clamp(-127, 127).to(torch.int8), "b": _random(32),
            "s": torch.full((32,), 0.001) + torch.arange(32) * 1e-5,
            "t": torch.full((64,), 0.02) + torch.arange(64) * 1e-4 if channels else torch.tensor(0.03),
        },
    )  # fmt: skip


def int8_weights() -> Graph:
    """Weight-only."""
    return _graph(
        """
param %w: i8[32, 64] "w"
param %s: f32[32] "s"
param %z: i64[32] "z"
%d: f16[32, 64] = quantized_decomposed.dequantize_per_channel.default(%w, %s, %z, 0, -127, 127, !i8, out_dtype=!f16)
%y: f16[n, 32] = aten.linear.default(%x, %d)
return "y" %y
""",
        {
            "w": (_random(32, 64) * 30).round().clamp(-127, 127).to(torch.int8), "s": torch.full((32,), 0.01),
            "z": torch.zeros(32, dtype=torch.int64),
        },
    )  # fmt: skip


def int4() -> Graph:
    """Blocks of 32."""
    return _graph(
        """
param %p: u8[32, 32] "p"
param %s: f16[32, 2] "s"
%d: f16[32, 64] = penstock.dequantize_int4.default(%p, %s, 32)
%y: f16[n, 32] = aten.linear.default(%x, %d)
return "y" %y
""",
        {
            "p": torch.randint(0, 256, (32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8),
            "s": (_random(32, 2).abs() * 0.05 + 0.01).half(),
        },
    )  # fmt: skip


def fp8() -> Graph:
    """W8A8 in e4m3."""
    return _graph(
        """
param %w: f8e4m3[32, 64] "w"
param %s: f32[32] "s"
param %t: f32[] "t"
%y: f16[n, 32] = penstock.fp8_linear.default(%x, %w, %s, None, %t)
return "y" %y
""",
        {
            "w": (_random(32, 64) * 50).clamp(-448, 448).to(torch.float8_e4m3fn),
            "s": torch.full((32,), 0.01) + torch.arange(32) * 1e-4, "t": torch.tensor(0.01),
        },
    )  # fmt: skip


def nvfp4() -> Graph:
    """W4A4 in blocks of 16."""
    return _graph(
        """
param %w: u8[32, 32] "w"
param %k: f8e4m3[32, 4] "k"
param %s: f32[] "s"
param %t: f32[] "t"
%y: f16[n, 32] = penstock.nvfp4_linear.default(%x, %w, %k, %s, None, %t)
return "y" %y
""",
        {
            "w": torch.randint(0, 256, (32, 32), generator=torch.Generator().manual_seed(2)).to(torch.uint8),
            "k": (_random(32, 4).abs() * 20 + 1).to(torch.float8_e4m3fn), "s": torch.tensor(0.002),
            "t": torch.tensor(0.004),
        },
    )  # fmt: skip


CASES = {
    "int8": (int8, 75, "int8"), "int8 channels": (lambda: int8(channels=True), 75, "int8"),
    "int8 weights": (int8_weights, 75, ""), "int4": (int4, 80, ""), "fp8": (fp8, 89, "fp8"),
    "nvfp4": (nvfp4, 120, "fp4"),
}  # fmt: skip


def _device(capability: int) -> Device:
    return Device(f"sm_{capability}", "cuda", capability)


@pytest.mark.parametrize("case", CASES)
def test_emitted_network_means_the_same(case: str) -> None:
    make, least, _ = CASES[case]
    half = make()
    weights = {n: t.float() if t.dtype == torch.float16 else t for n, t in half.weights.items()}
    graph = parse(show(half).replace("f16", "f32"), weights)  # in f16 the scales are rounded: other steps, same form
    inputs = {"x": _random(5, 64)}
    want, got = interpret(graph, inputs)["y"], simulate(graph, _device(max(least, 80)), inputs)["y"]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)
    exact = (simulate(half, _device(least), {"x": inputs["x"].half()})["y"] - interpret(graph, inputs)["y"]).abs()
    assert exact.mean() < 0.01 * want.abs().mean()


@pytest.mark.parametrize("case", CASES)
def test_builds_from_its_first_capability_on(case: str) -> None:
    make, least, product = CASES[case]
    graph = make()
    for capability in (c for c in (75, 80, 89, 120) if c >= least):
        device = _device(capability)
        plan, _ = build(emit(graph, device), profile_of(graph, 64)[0], device)
        found = facts(read(plan, STUDIED), len(plan))
        assert found["matmuls"] == 1
        assert not product or found[f"{product}_matmuls"] == 1


@pytest.mark.parametrize("case", [c for c, (_, least, _) in CASES.items() if least > 75])
def test_refused_before(case: str) -> None:
    make, least, _ = CASES[case]
    device = _device({80: 75, 89: 86, 120: 89}[least])
    faults = emit_all(make(), device)[1]
    assert faults and f"{device.name} has" in faults[0].reason


def test_activations_around_another_zero_are_refused() -> None:
    (fault,) = emit_all(int8(zero=120), _device(89))[1]
    assert "symmetric" in fault.reason and "128" in fault.reason
