"""Products in fp8 and NVFP4: exact where they can be, close where not, the right things declined."""

from __future__ import annotations

import pytest
import torch

from ir import interpret, verify
from ir.errors import UsageError
from ir.narrow import E2M1, E4M3, fp8_linear, nvfp4_rows, nvfp4_values
from passes import PASSES, QuantizeFloats, parse_passes
from passes.narrow_weights import to_fp8, to_nvfp4
from tests.passes.case import read, told
from tests.passes.linears import samples, two, weights

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
FORMATS = pytest.mark.parametrize("format_", ["fp8", "nvfp4"])


@BOTH
@pytest.mark.parametrize(("format_", "least"), [("fp8", 0.998), ("nvfp4", 0.97)])
def test_close_and_what_it_says(format_: str, least: float, dtype: torch.dtype) -> None:
    graph, given = two(weights(dtype)), samples(dtype)
    want = interpret(graph, given[0])["y"]
    said = QuantizeFloats(format=format_).run(graph, given)
    verify(graph)
    got = interpret(graph, given[0])["y"]
    assert got.dtype is dtype
    assert torch.nn.functional.cosine_similarity(got.float(), want.float()).min() > least
    assert all(line.startswith("+") and line.endswith(f"in {format_}") for line in told(said))
    assert [n.op.name for n in graph if "penstock" in n.op.name] == [f"penstock.{format_}_linear.default"] * 2
    assert "up.weight" not in graph.weights


def test_what_fp8_holds_comes_out_exactly() -> None:
    torch.manual_seed(0)
    w = torch.randn(96, 64).to(E4M3).float()
    w[:, 0] = 448.0
    x = torch.randint(-8, 9, (40, 64)).float()
    x[:, 0] = 448.0
    graph = read(_ONE, {"w": w / 64})
    want = interpret(graph, {"x": x})["y"]
    said = QuantizeFloats(format="fp8").run(graph, [{"x": x}])
    assert "own error 0.0%" in told(said)[0]
    torch.testing.assert_close(interpret(graph, {"x": x})["y"], want, rtol=1e-6, atol=0.0)


def test_what_nvfp4_holds_comes_out_exactly() -> None:
    torch.manual_seed(0)

    def made(rows: int) -> torch.Tensor:
        q = torch.tensor(E2M1)[torch.randint(0, 16, (rows, 4, 16))]
        q[..., 0] = 6.0
        block = torch.tensor([448.0, 32.0, 3.0, 0.25])
        return (q * block[:, None]).flatten(1)

    w, x = made(96), made(40) / 2688
    graph = read(_ONE, {"w": w / 2688})
    want = interpret(graph, {"x": x})["y"]
    said = QuantizeFloats(format="nvfp4").run(graph, [{"x": x}])
    assert "own error 0.0%" in told(said)[0]
    torch.testing.assert_close(interpret(graph, {"x": x})["y"], want, rtol=1e-5, atol=1e-6)


_ONE = """
    param %w: f32[96, 64] "w"
    input %x: f32[40, 64] "x"
    %y: f32[40, 96] = aten.linear.default(%x, %w)
    return "y" %y
    """


@FORMATS
def test_linears_that_read_one_activation_share_its_scale(format_: str) -> None:
    graph = read(
        """
        param %w: f32[96, 64] "w"
        param %v: f32[64, 96] "v"
        input %x: f32[40, 64] "x"
        %y: f32[40, 96] = aten.linear.default(%x, %w)
        %z: f32[40, 96] = aten.mm.default(%x, %v)
        return "y" %y, "z" %z
        """,
        {"w": torch.randn(96, 64), "v": torch.randn(64, 96)},
    )
    QuantizeFloats(format=format_).run(graph, [{"x": torch.randn(40, 64)}])
    one, two_ = (n for n in graph if "penstock" in n.op.name)
    assert one.args[-1] is two_.args[-1]
    assert len([name for name in graph.weights if "x_scale" in name]) == 1


@FORMATS
def test_what_is_declined(format_: str) -> None:
    def run(given: bool = True, **options: object) -> tuple[str, ...]:
        pass_ = QuantizeFloats(format=format_, **options)  # type: ignore[arg-type]
        return told(pass_.run(two(weights()), samples() if given else ()))

    assert run(given=False) == ("- scales of activations need samples",) * 2
    assert run(skip=("down.*",))[0] == "- its path is in skip"
    assert all("kept in float (keep=2)" in line for line in run(keep=2))
    assert all("more than max-error" in line for line in run(max_error=0.001))
    odd = read(
        """
        param %w: f32[600, 8] "w"
        input %x: f32[4, 8] "x"
        %y: f32[4, 600] = aten.linear.default(%x, %w)
        return "y" %y
        """,
        {"w": torch.randn(600, 8)},
    )
    said = QuantizeFloats(format=format_).run(odd, [{"x": torch.randn(4, 8)}])
    assert told(said) == ("- 8 inputs are no multiple of 16",)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="format is one of fp8, nvfp4"):
        parse_passes("quantize-floats{format=fp6}", PASSES)


def test_fp8_takes_an_outlier_channel_that_drowns_the_others_in_int8() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(300, 64), torch.randn(96, 64) / 8
    x[:, 3], w[:, 3] = 900.0, 0.0
    want = x @ w.t()
    made = to_fp8(w)
    got = fp8_linear(x, made.q, made.scale, None, x.abs().amax() / 448)
    coarse = x.abs().amax() / 127
    assert (got - want).norm() < 0.06 * want.norm()
    assert ((x / coarse).round() * coarse @ w.t() - want).norm() > 0.9 * want.norm()


def test_nvfp4_blocks_of_zeros_stay_zero_and_the_search_beats_the_plain_step() -> None:
    torch.manual_seed(0)
    w = torch.randn(32, 64)
    w[3] = 0.0
    made = to_nvfp4(w)
    assert not made.float()[3].any()
    scale = w.abs().amax() / 2688
    plain = nvfp4_values(*nvfp4_rows(w, scale)) * scale
    assert (made.float() - w).square().sum() < 0.9 * (plain - w).square().sum()
