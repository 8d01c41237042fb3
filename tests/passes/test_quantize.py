"""Real int8: exact products, bounded errors, the right things declined."""

import pytest
import torch

from ir import interpret, verify
from ir.own_ops import int8_linear_dynamic, int8_linear_static
from passes import Quantize
from passes.calibrate_int8 import calibrate
from passes.linears import Observed
from passes.narrow_weights import to_int8
from tests.passes.case import read, told

TWO = """
    dim n [1, 64]
    param %w: f32[96, 64] "up.weight"
    param %b: f32[96] "up.bias"
    param %v: f32[64, 96] "down.weight"
    input %x: f32[n, 64] "x"
    %h: f32[n, 96] = aten.linear.default(%x, %w, %b)  # up @ model.py:1
    %g: f32[n, 96] = aten.relu.default(%h)
    %y: f32[n, 64] = aten.linear.default(%g, %v)  # down @ model.py:2
    return "y" %y
    """


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"up.weight": torch.randn(96, 64) / 8, "up.bias": torch.randn(96), "down.weight": torch.randn(64, 96) / 9}


def test_weight_error_is_at_most_half_a_step() -> None:
    w = torch.randn(32, 48)
    made = to_int8(w, clips=(1.0,))
    assert ((made.q * made.scale[:, None] - w).abs() <= made.scale[:, None] / 2 + 1e-6).all()
    assert made.q.dtype is torch.int8


def test_integer_product_is_exact_also_past_float32() -> None:
    torch.manual_seed(0)
    x = torch.full((3, 4096), 1.0)
    weight = torch.full((5, 4096), 127, dtype=torch.int8)
    got = int8_linear_dynamic(x, weight, torch.ones(5), None)
    assert torch.equal(got, torch.full((3, 5), 4096 * 255 * 127.0).float() * torch.tensor(1 / 255.0))


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_both_modes_are_close_and_say_so(mode: str) -> None:
    graph = read(TWO, weights())
    samples = [{"x": torch.randn(40, 64)} for _ in range(3)]
    want = interpret(graph, samples[0])["y"]
    said = Quantize(activations=mode).run(graph, samples)
    verify(graph)
    got = interpret(graph, samples[0])["y"]
    assert torch.nn.functional.cosine_similarity(got, want).min() > 0.999
    assert all(f"{mode} activations" in line for line in told(said))
    assert [n.op.name for n in graph if "int8" in n.op.name] == [f"penstock.int8_linear_{mode}.default"] * 2
    assert {t.dtype for n, t in graph.weights.items() if n.endswith(".int8")} >= {torch.int8}
    assert "up.weight" not in graph.weights  # the float weight is gone


def test_auto_is_dynamic_without_samples_and_static_with_them() -> None:
    assert "dynamic" in told(Quantize().run(read(TWO, weights())))[0]
    assert "static" in told(Quantize().run(read(TWO, weights()), [{"x": torch.randn(8, 64)}]))[0]
    refused = Quantize(activations="static").run(read(TWO, weights()))
    assert told(refused) == ("- static activations need samples",) * 2


def test_symmetric_puts_zero_in_the_middle_and_needs_samples() -> None:
    graph, samples = read(TWO, weights()), [{"x": torch.randn(40, 64)}]
    want = interpret(graph, samples[0])["y"]
    said = Quantize(symmetric=True).run(graph, samples)
    verify(graph)
    assert all(line.startswith("+") for line in told(said))
    assert {n.args[5] for n in graph if n.op.name == "penstock.int8_linear_static.default"} == {128}
    assert torch.nn.functional.cosine_similarity(interpret(graph, samples[0])["y"], want).min() > 0.999
    refused = Quantize(symmetric=True).run(read(TWO, weights()))
    assert told(refused) == ("- symmetric activations need samples",) * 2
    with pytest.raises(ValueError, match="asymmetric"):
        Quantize(symmetric=True, activations="dynamic")


def test_skip_keep_and_bounds() -> None:
    samples = [{"x": torch.randn(40, 64)}]
    assert told(Quantize(skip=("up*",)).run(read(TWO, weights()), samples))[0] == "- its path is in skip"
    kept = told(Quantize(keep=1).run(read(TWO, weights()), samples))
    assert "kept in float (keep=1)" in kept[0]
    assert kept[1].startswith("+")
    assert all(
        "more than max-error" in line for line in told(Quantize(max_error=0.0).run(read(TWO, weights()), samples))
    )
    small = told(Quantize(min_weights=10**6).run(read(TWO, weights()), samples))
    assert small == ("- fewer than 1000000 weights: the overhead would not pay",) * 2


def test_extreme_setting_is_the_exact_graph() -> None:
    graph = read(TWO, weights())
    x = {"x": torch.randn(9, 64)}
    want, version = interpret(graph, x)["y"], graph.version
    Quantize(keep=2).run(graph, [x])
    assert torch.equal(interpret(graph, x)["y"], want)
    assert graph.version == version


def test_sensitivity_puts_the_planted_fragile_linear_first() -> None:
    broken = weights()
    broken["up.weight"][:, 0] *= 300.0  # one column a hundred times larger: per-row scales suffer
    said = told(Quantize(keep=1, activations="dynamic").run(read(TWO, broken), [{"x": torch.randn(40, 64)}]))
    assert "kept in float" in said[0]
    graph = read(TWO, broken)
    Quantize(keep=1, activations="dynamic").run(graph, [{"x": torch.randn(40, 64)}])
    assert "up.weight" in graph.weights
    assert "down.weight" not in graph.weights


def test_smoothing_finds_planted_outlier_channels() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 64)
    x[:, 3] *= 60
    x[:, 17] *= 40
    w = torch.randn(96, 64) / 8
    seen = Observed()
    seen.see(x, 300)
    (made,) = calibrate(seen, [w])
    assert made.x_scale.shape == (64,)
    assert made.x_scale[3] > 5 * made.x_scale[0]
    plain = to_int8(w)
    step = float((x.amax() - x.amin()) / 255)
    zero = round(float(-x.amin() / step))
    flat = int8_linear_static(x, plain.q, plain.scale * step, None, torch.tensor(step), zero)
    good = int8_linear_static(x, made.weight.q, made.weight.scale, made.shift, made.x_scale, made.x_zero)
    want = x @ w.t()
    assert (good - want).norm() * 2 < (flat - want).norm()


def test_addmm_and_mm_are_linears_lying_the_other_way() -> None:
    graph = read(
        """
        param %w: f32[64, 96] "w"
        param %b: f32[96] "b"
        input %x: f32[7, 64] "x"
        %h: f32[7, 96] = aten.addmm.default(%b, %x, %w)
        %m: f32[7, 96] = aten.mm.default(%x, %w)
        return "h" %h, "m" %m
        """,
        {"w": torch.randn(64, 96), "b": torch.randn(96)},
    )
    x = {"x": torch.randn(7, 64)}
    want = interpret(graph, x)
    Quantize().run(graph, [x])
    got = interpret(graph, x)
    for name in ("h", "m"):
        assert torch.nn.functional.cosine_similarity(got[name], want[name]).min() > 0.999
