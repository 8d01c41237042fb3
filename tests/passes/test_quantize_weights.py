"""Weights in int8 and int4: exact where they can be, close where not, the right things declined."""

from __future__ import annotations

import pytest
import torch

from ir import interpret, verify
from ir.errors import UsageError
from passes import PASSES, QuantizeWeights, parse_passes
from passes.narrow_weights import compensation, to_int4, to_int8
from tests.passes.case import read, told
from tests.passes.linears import samples, two, weights

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])


@BOTH
@pytest.mark.parametrize(("format_", "least"), [("int8", 0.9999), ("int4", 0.99)])
def test_close_and_what_it_says(format_: str, least: float, dtype: torch.dtype) -> None:
    graph, given = two(weights(dtype)), samples(dtype)
    want, size = interpret(graph, given[0])["y"], graph.weights.nbytes
    said = QuantizeWeights(format=format_, block=32).run(graph, given)
    verify(graph)
    got = interpret(graph, given[0])["y"]
    assert got.dtype is dtype
    assert torch.nn.functional.cosine_similarity(got.float(), want.float()).min() > least
    assert all(line.startswith("+") and line.endswith(f"weights in {format_}") for line in told(said))
    assert "up.weight" not in graph.weights
    assert graph.weights.nbytes < size * {"int8": 0.6, "int4": 0.4}[format_] * (1 if dtype is torch.float16 else 0.6)


@BOTH
@pytest.mark.parametrize("format_", ["int8", "int4"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_weights_that_the_format_holds_come_out_exactly(format_: str, dtype: torch.dtype, calibrated: bool) -> None:
    top = {"int8": 127, "int4": 7}[format_]
    given = weights()
    for name in ("up.weight", "down.weight"):
        whole = torch.randint(-top, top + 1, given[name].shape).float()
        whole[:, ::32] = top
        given[name] = whole * 2.0 ** -torch.randint(6, 9, (len(whole), 1)).float()
    graph = two({name: w.to(dtype) for name, w in given.items()})
    x = samples(dtype)
    want = interpret(graph, x[0])["y"]
    said = QuantizeWeights(format=format_, block=32).run(graph, x if calibrated else ())
    assert all("own error 0.0%" in line for line in told(said))
    assert torch.equal(interpret(graph, x[0])["y"], want)


def test_keeping_all_is_the_exact_graph() -> None:
    graph = two(weights())
    version = graph.version
    said = QuantizeWeights(format="int4", block=32, keep=2).run(graph, samples())
    assert graph.version == version
    assert all("kept in float (keep=2)" in line for line in told(said))


def test_what_is_declined() -> None:
    run = lambda **options: told(QuantizeWeights(**options).run(two(weights()), samples()))  # noqa: E731
    assert run(skip=("up*",))[0] == "- its path is in skip"
    assert run(min_weights=10**6) == ("- fewer than 1000000 weights: the overhead would not pay",) * 2
    assert run(format="int4", block=64)[0] == "- 96 inputs are no whole number of blocks of 64"
    assert all("more than max-error" in line for line in run(format="int4", block=32, max_error=0.01))


@pytest.mark.parametrize("text", ["quantize-weights{format=int5}", "quantize-weights{block=3}"])
def test_options_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_passes(text, PASSES)


def test_int4_steps_are_better_than_the_largest_magnitude_over_seven() -> None:
    torch.manual_seed(0)
    w = torch.randn(64, 128)
    step = w.unflatten(1, (-1, 64)).abs().amax(-1, keepdim=True) / 7
    plain = ((w.unflatten(1, (-1, 64)) / step).round().clamp(-8, 7) * step).flatten(1)
    made = to_int4(w, 64, torch.float32)
    assert (made.float() - w).square().sum() < 0.9 * (plain - w).square().sum()


def test_compensation_lowers_the_error_of_unseen_outputs_and_is_off_where_channels_are_alike() -> None:
    torch.manual_seed(0)
    mixing, w = torch.randn(24, 128), torch.randn(64, 128)  # channels that have much in common
    seen, unseen = (torch.randn(1000, 24) @ mixing + torch.randn(1000, 128) for _ in range(2))
    wrong = [
        ((made.float() - w) @ unseen.t()).norm()
        for made in (to_int4(w, 32, torch.float16), to_int4(w, 32, torch.float16, compensation(seen)))
    ]
    assert wrong[1] < 0.8 * wrong[0]
    alike = torch.eye(128).repeat(2, 1)
    assert torch.equal(to_int4(w, 32, torch.float32, compensation(alike)).packed, to_int4(w, 32, torch.float32).packed)
    assert compensation(torch.full((4, 128), torch.nan)) is None
    assert torch.equal(
        to_int4(w, 32, torch.float32, compensation(alike * 0)).packed, to_int4(w, 32, torch.float32).packed
    )


def test_a_block_of_zeros_and_steps_below_float16_stay_finite() -> None:
    w = torch.cat((torch.zeros(2, 32), torch.full((2, 32), 1e-9), torch.randn(2, 32)))
    for made in (to_int4(w, 16, torch.float16), to_int8(w)):
        assert made.float().isfinite().all()
        assert not made.float()[:2].any()


def test_a_weight_that_others_read_wide_is_read_through_its_cast() -> None:
    graph = read(
        """
        param %t: f32[80, 64] "table"
        input %i: i64[5] "i"
        %e: f32[5, 64] = aten.embedding.default(%t, %i)
        %x: f16[5, 64] = aten.to.dtype(%e, !f16)
        %c: f16[80, 64] = aten.to.dtype(%t, !f16)
        %y: f16[5, 80] = aten.linear.default(%x, %c)
        return "y" %y
        """,
        {"table": torch.randn(80, 64)},
    )
    said = QuantizeWeights(format="int4", block=32).run(graph, [{"i": torch.arange(5)}])
    verify(graph)
    assert told(said)[0].startswith("+")
    assert [n.op.name.split(".")[1] for n in list(graph)[:4]] == ["embedding", "to", "dequantize_int4", "linear"]
    assert set(graph.weights) == {"table", "table.int4", "table.scale", "table.bias"}
