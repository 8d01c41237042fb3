"""Prices against numbers worked out by hand, and against torch's own counter where that is right."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ir import RETURN, Graph, Node, evaluate, interpret, parse, symbol
from ir.dims import DimRange
from ir.ops import op
from ir.own_ops import define
from ir.price import Attention, Gemm, Price, is_view, price
from ir.reexport import example_inputs
from ir.types import TensorType

F32, BF16, I8, I64 = torch.float32, torch.bfloat16, torch.int8, torch.int64
N = symbol("n")


def make(name: str, *args: object, **kwargs: object) -> Node:
    """One node; a pair ``(dtype, shape)`` in the arguments becomes an input."""
    graph = Graph("g", {"n": DimRange(1, 4096)})

    def value(arg: object) -> object:
        if isinstance(arg, tuple) and arg and isinstance(arg[0], torch.dtype):
            return graph.add_input("input", f"x{len(graph.inputs)}", TensorType(arg[0], arg[1]))
        return tuple(map(value, arg)) if isinstance(arg, tuple) else arg

    return graph.insert(op(name), *(value(a) for a in args), kwargs=kwargs)


def f32(*shape: object) -> tuple[object, ...]:
    return (F32, shape)


CASES = [
    # name, arguments, operations, bytes read, bytes written
    ("aten.linear.default", (f32(2, 3, 8), f32(16, 8), f32(16)), 2 * 6 * 8 * 16, 4 * (48 + 128 + 16), 4 * 96),
    ("aten.mm.default", (f32(5, 8), f32(8, 3)), 240, 4 * (40 + 24), 60),
    ("aten.addmm.default", (f32(3), f32(5, 8), f32(8, 3)), 240, 4 * (3 + 40 + 24), 60),
    ("aten.bmm.default", (f32(2, 5, 8), f32(2, 8, 3)), 480, 4 * (80 + 48), 120),
    ("aten.baddbmm.default", (f32(2, 5, 3), f32(2, 5, 8), f32(2, 8, 3)), 480, 4 * (30 + 80 + 48), 120),
    ("aten.matmul.default", (f32(2, 4, 5, 8), f32(4, 8, 3)), 2 * 8 * 120, 4 * (320 + 96), 4 * 120),
    ("aten.matmul.default", (f32(5, 8), f32(8)), 80, 4 * 48, 20),
    ("aten.einsum.default", ("bqhd,bkhd->bhqk", (f32(2, 5, 4, 8), f32(2, 7, 4, 8))), 2 * 2 * 4 * 5 * 7 * 8,
     4 * (320 + 448), 4 * 280),
    ("aten.einsum.default", ("...ij,jk", (f32(3, 5, 8), f32(8, 2))), 2 * 3 * 80, 4 * (120 + 16), 4 * 30),
    ("aten.conv2d.default", (f32(2, 4, 10, 10), f32(6, 4, 3, 3), f32(6)), 2 * 2 * 64 * 6 * 36,
     4 * (800 + 216 + 6), 4 * 2 * 6 * 64),
    ("aten.conv2d.default", (f32(2, 4, 10, 10), f32(6, 2, 3, 3), None, (1, 1), (1, 1), (1, 1), 2),
     2 * 2 * 100 * 6 * 18, 4 * (800 + 108), 4 * 1200),
    ("aten.conv_transpose2d.input", (f32(2, 4, 5, 5), f32(4, 6, 3, 3), None, (2, 2)), 2 * 2 * 25 * 4 * 54,
     4 * (200 + 216), 4 * 2 * 6 * 121),
    ("aten.layer_norm.default", (f32(4, 8), (8,), f32(8), f32(8)), 7 * 32, 4 * (32 + 16), 128),
    ("aten.softmax.int", (f32(4, 8), -1), 5 * 32, 128, 128),
    ("aten.gelu.default", (f32(4, 8),), 32, 128, 128),
    ("aten.add.Tensor", (f32(4, 8), f32(8)), 32, 128 + 32, 128),
    ("aten.sum.dim_IntList", (f32(4, 8), (1,)), 32, 128, 16),
    ("aten.max_pool2d.default", (f32(1, 2, 8, 8), (2, 2)), 32 * 4, 512, 128),
    ("aten.embedding.default", (f32(30522, 768), (I64, (2, 5))), 0, 4 * 7680 + 80, 4 * 7680),
    ("aten.index_select.default", (f32(1000, 4), 0, (I64, (3,))), 0, 48 + 24, 48),
    ("aten.cat.default", ((f32(2, 4), f32(3, 4)), 0), 0, 80, 80),
    ("aten.to.dtype", ((BF16, (4, 8)), F32), 0, 64, 128),
    ("aten.arange.default", (16,), 0, 0, 128),
    ("aten.zeros_like.default", (f32(4, 4),), 0, 0, 64),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "flops", "read", "written"), CASES)
def test_by_hand(name: str, args: tuple[object, ...], flops: int, read: int, written: int) -> None:
    got = price(make(name, *args))
    assert (got.flops, got.bytes_read, got.bytes_written, got.kernels) == (flops, read, written, 1)
    assert got.kind != "unknown"


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("aten.transpose.int", (0, 1)),
        ("aten.permute.default", ((1, 0),)),
        ("aten.reshape.default", ((8, 4),)),
        ("aten.view.default", ((32,),)),
        ("aten.expand.default", ((3, 4, 8),)),
        ("aten.slice.Tensor", (0, 1, 3)),
        ("aten.select.int", (0, 1)),
        ("aten.unsqueeze.default", (0,)),
        ("aten.squeeze.default", ()),
        ("aten.split.Tensor", (2,)),
        ("aten.chunk.default", (2,)),
        ("aten.unbind.int", ()),
        ("aten.dropout.default", (0.1, False)),
        ("aten.to.dtype", (F32,)),
    ],
)
def test_views_are_free(name: str, args: tuple[object, ...]) -> None:
    node = make(name, f32(4, 8), *args)
    got = price(node)
    assert is_view(node)
    assert got.free
    assert (got.flops, got.bytes_read, got.bytes_written, got.kernels) == (0, 0, 0, 0)


def test_symbolic_equals_concrete() -> None:
    for n in (1, 3, 64):
        for name, args in (
            ("aten.linear.default", lambda d: (f32(d, 5, 8), f32(16, 8))),
            ("aten.scaled_dot_product_attention.default", lambda d: (f32(2, 4, d, 8),) * 3),
            ("aten.conv2d.default", lambda d: (f32(d, 4, 10, 10), f32(6, 4, 3, 3))),
            ("aten.layer_norm.default", lambda d: (f32(4, d, 8), (8,))),
            ("aten.embedding.default", lambda d: (f32(100, 8), (I64, (d, 7)))),
        ):
            symbolic, concrete = price(make(name, *args(N))), price(make(name, *args(n)))
            for figure in ("flops", "bytes_read", "bytes_written"):
                assert evaluate(getattr(symbolic, figure), {"n": n}) == getattr(concrete, figure), (
                    name,
                    figure,
                )


class TestAttention:
    def test_no_score_matrix(self) -> None:
        got = price(make("aten.scaled_dot_product_attention.default", *(f32(2, 4, 100, 8),) * 3))
        assert got.flops == 4 * 2 * 4 * 100 * 100 * 8
        assert got.bytes_read + got.bytes_written == 4 * 4 * (2 * 4 * 100 * 8)
        assert got.work == Attention(8, 100, 100, 8, causal=False)

    def test_causal_halves(self) -> None:
        args = (f32(2, 4, 100, 8),) * 3
        full = price(make("aten.scaled_dot_product_attention.default", *args))
        half = price(make("aten.scaled_dot_product_attention.default", *args, None, 0.0, True))
        assert 2 * half.flops == full.flops

    def test_grouped_heads_read_less(self) -> None:
        q, kv = f32(2, 8, 100, 16), f32(2, 2, 100, 16)
        got = price(make("aten.scaled_dot_product_attention.default", q, kv, kv, enable_gqa=True))
        assert got.flops == 4 * 2 * 8 * 100 * 100 * 16
        assert got.bytes_read == 4 * 2 * 100 * 16 * (8 + 2 + 2)

    def test_repeated_heads_are_read_once(self) -> None:
        graph = parse(
            """penstock-ir 1
graph "gqa"
input %q: f32[2, 8, 100, 16] "q"
input %k: f32[2, 2, 100, 16] "k"
%u: f32[2, 2, 1, 100, 16] = aten.unsqueeze.default(%k, 2)
%e: f32[2, 2, 4, 100, 16] = aten.expand.default(%u, [2, 2, 4, 100, 16])
%r: f32[2, 8, 100, 16] = aten.reshape.default(%e, [2, 8, 100, 16])
%y: f32[2, 8, 100, 16] = aten.scaled_dot_product_attention.default(%q, %r, %r)
return "y" %y
"""
        )
        got = price(list(graph)[3])
        assert got.reads == (4 * 2 * 8 * 100 * 16, 4 * 2 * 2 * 100 * 16, 0)  # %r stands there twice


class TestInt8:
    def test_dynamic_linear(self) -> None:
        got = price(make("penstock.int8_linear_dynamic.default", f32(4, 8), (I8, (16, 8)), f32(16), None))
        assert got.compute is I8
        assert got.flops == 2 * 4 * 8 * 16
        assert got.reads == (2 * 128, 128, 64)  # input twice: its range, then its rounding; weight in int8
        assert (got.scratch, got.kernels) == (2 * 32, 2)
        assert got.work == Gemm(1, 4, 16, 8, quantizes=True)

    def test_static_linear_knows_its_range(self) -> None:
        name = "penstock.int8_linear_static.default"
        got = price(make(name, f32(4, 8), (I8, (16, 8)), f32(16), None, f32(), 7))
        assert got.reads == (128, 128, 64, 4)
        assert (got.flops, got.scratch, got.compute) == (2 * 4 * 8 * 16, 64, I8)

    def test_fp8_and_nvfp4_linears(self) -> None:
        eight, four = torch.float8_e4m3fn, torch.float4_e2m1fn_x2
        got = price(make("penstock.fp8_linear.default", f32(4, 32), (eight, (16, 32)), f32(16), None, f32()))
        assert (got.flops, got.compute, got.work) == (2 * 4 * 32 * 16, eight, Gemm(1, 4, 16, 32))
        assert got.reads == (512, 512, 64, 4)
        weight, blocks = (torch.uint8, (16, 16)), (eight, (16, 2))
        got = price(make("penstock.nvfp4_linear.default", f32(4, 32), weight, blocks, f32(), None, f32()))
        assert (got.flops, got.compute, got.work) == (2 * 4 * 32 * 16, four, Gemm(1, 4, 16, 32))
        assert got.reads == (512, 256, 32, 4, 4)

    def test_int4_weights_are_read_packed_and_multiplied_as_float(self) -> None:
        graph = parse(
            """penstock-ir 1
graph "int4"
input %x: f16[4, 64] "x"
input %p: u8[16, 32] "p"
input %s: f16[16, 2] "s"
%w: f16[16, 64] = penstock.dequantize_int4.default(%p, %s, 32)
%y: f16[4, 16] = aten.linear.default(%x, %w)
return "y" %y
"""
        )
        dequantize, product, _ = graph
        assert price(dequantize).free
        assert price(product).reads == (2 * 4 * 64, 16 * 32)
        assert price(product).compute is torch.float16

    def test_product_of_dequantized_values_is_int8(self) -> None:
        importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers quantized_decomposed
        graph = parse(
            """penstock-ir 1
graph "qdq"
input %x: f32[4, 8] "x"
input %w: i8[16, 8] "w"
%q: i8[4, 8] = quantized_decomposed.quantize_per_tensor.default(%x, 0.1, 0, -128, 127, !i8)
%d: f32[4, 8] = quantized_decomposed.dequantize_per_tensor.default(%q, 0.1, 0, -128, 127, !i8)
%dw: f32[16, 8] = quantized_decomposed.dequantize_per_tensor.default(%w, 0.1, 0, -128, 127, !i8)
%y: f32[4, 16] = aten.linear.default(%d, %dw)
%z: f32[4, 16] = aten.linear.default(%x, %dw)
return "y" %y, "z" %z
"""
        )
        quantize, dequantize, _, both, weight_only, _ = graph
        assert (price(quantize).bytes_read, price(quantize).bytes_written) == (128, 32)
        assert price(dequantize).free
        assert price(both).reads == (32, 128)
        assert price(both).compute is I8
        assert price(weight_only).reads == (128, 128)
        assert price(weight_only).compute is F32


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("aten.linear.default", (f32(2, 3, 8), f32(16, 8), f32(16))),
        ("aten.matmul.default", (f32(2, 4, 5, 8), f32(2, 4, 8, 3))),
        ("aten.einsum.default", ("bqd,bkd->bqk", (f32(2, 5, 8), f32(2, 7, 8)))),
        ("aten.conv1d.default", (f32(2, 4, 20), f32(6, 4, 3), None, (2,))),
        ("aten.conv2d.default", (f32(2, 4, 10, 10), f32(8, 1, 3, 3), None, (1, 1), (0, 0), (1, 1), 4)),
        ("aten.conv_transpose2d.input", (f32(2, 4, 5, 5), f32(4, 6, 3, 3), None, (2, 2))),
        ("aten.conv3d.default", (f32(1, 2, 6, 6, 6), f32(3, 2, 2, 2, 2))),
    ],
)
def test_agrees_with_torch(name: str, args: tuple[object, ...]) -> None:
    node = make(name, *args)
    graph = node.block
    assert graph is not None

    def tensor(arg: object) -> object:
        if isinstance(arg, tuple) and arg and isinstance(arg[0], torch.dtype):
            return torch.zeros(arg[1], device="meta")
        return list(map(tensor, arg)) if isinstance(arg, tuple) else arg

    with FlopCounterMode(display=False) as counter:
        node.op.target(*map(tensor, args))
    assert price(node).flops == counter.get_total_flops()


def test_unknown_operators_are_marked() -> None:
    got = price(make("aten.fft_fft.default", f32(4, 8)))
    assert (got.kind, got.flops) == ("unknown", 0)
    assert (got.bytes_read, got.bytes_written) == (128, 256)


def test_equal_calls_share_their_price() -> None:
    one, two = (price(make("aten.linear.default", f32(N, 8), f32(16, 8))) for _ in range(2))
    assert one is two


def test_half_precision_is_part_of_the_price() -> None:
    got = price(make("aten.mm.default", (BF16, (4, 8)), (BF16, (8, 16))))
    assert got.compute is BF16
    assert got.bytes_read == 2 * (32 + 128)


REGIONS = """penstock-ir 1
graph "regions"
input %p: bool[] "p"
input %x: f32[8, 8] "x"
%y: f32[8, 8] = cond(%p, [%x]) do
  region(%a: f32[8, 8])
    %b: f32[8, 8] = aten.mm.default(%a, %a)
    return %b
  end
  region(%c: f32[8, 8])
    %d: f32[8, 8] = aten.relu.default(%c)
    %e: f32[8, 8] = aten.relu.default(%d)
    return %e
  end
%z: f32[8, 8] = while([%y], []) do
  region(%f: f32[8, 8])
    %g: f32[] = aten.amax.default(%f)
    %h: bool[] = aten.lt.Scalar(%g, 1.0)
    return %h
  end
  region(%i: f32[8, 8])
    %j: f32[8, 8] = aten.mm.default(%i, %i)
    return %j
  end
return "z" %z
"""


def test_regions() -> None:
    branch, loop, _ = parse(REGIONS)
    got = price(branch)
    assert (got.flops, got.bytes_read, got.bytes_written, got.kernels) == (
        1024,
        512,
        512,
        2,
    )  # larger in each
    for trips in (1, 3):
        assert price(loop, trips).flops == 1024 * trips + (64 + 1) * (trips + 1)


def test_every_corpus_graph_is_priced() -> None:
    define()
    unknown = set()
    for path in sorted(Path("tests/corpus").glob("*.ir")):
        for node in parse(path.read_text()).walk():
            if node.op is not RETURN:
                got: Price = price(node)
                if got.kind == "unknown":
                    unknown.add(node.op.name)
    assert not unknown


def test_flops_of_a_whole_graph_agree_with_torch() -> None:
    graph = parse(
        """penstock-ir 1
graph "mlp"
dim n [1, 64]
input %x: f32[n, 8] "x"
input %w: f32[16, 8] "w"
input %v: f32[4, 16] "v"
%h: f32[n, 16] = aten.linear.default(%x, %w)
%r: f32[n, 16] = aten.relu.default(%h)
%y: f32[n, 4] = aten.linear.default(%r, %v)
return "y" %y
"""
    )
    with FlopCounterMode(display=False) as counter:
        interpret(graph, example_inputs(graph, {"n": 5}))
    got = sum(evaluate(price(node).flops, {"n": 5}) for node in graph if node.op.name == "aten.linear.default")
    assert got == counter.get_total_flops()
